"""
LibreOffice's help: English paragraphs and their translations into Chinese, aligned by the paragraphs' ids.

Licence: MPL-2.0. To get it: the Debian packages `libreoffice-help-en-us` and `libreoffice-help-zh-cn`, installed, or
`apt-get download` and `dpkg-deb -x` into a folder that `--data_dir` names.
"""

import re
from html import unescape
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict

from .installed import locate
from .reviews import SPLIT_SEED

FOLDER = "libreoffice/help/{}/text"
ADVICE = (
    "apt install libreoffice-help-en-us libreoffice-help-zh-cn, or `dpkg-deb -x` both into one that --data_dir names"
)
PARAGRAPH = re.compile(r'<(p|h\d)[^>]* id="([^"]+)"[^>]*>(.*?)</\1>', re.DOTALL)
# of the pages
TEST_SHARE = 0.1


def paragraphs(page: Path) -> dict[str, str]:
    """Id -> text of the paragraphs and titles of a page."""
    found = PARAGRAPH.findall(page.read_text(encoding="utf-8"))
    return {name: " ".join(unescape(re.sub(r"<[^>]+>", "", text)).split()) for _, name, text in found}


def load_libreoffice_help(data_dir: str | None = None) -> DatasetDict:
    """
    `text` and `target`, each pair once. The `test` split has a tenth of the pages, without the
    English texts that stand on another page too.
    """
    english, chinese = (
        locate(FOLDER.format(language), [Path("/usr/share") / FOLDER.format(language)], ADVICE, data_dir)
        for language in ("en-US", "zh-CN")
    )
    pages = sorted(
        path.relative_to(english) for path in english.rglob("*.html") if (chinese / path.relative_to(english)).is_file()
    )
    is_test = np.random.default_rng(SPLIT_SEED).random(len(pages)) < TEST_SHARE
    pairs: dict[tuple[str, str], bool] = {}
    for page, of_test in zip(pages, is_test.tolist(), strict=True):
        sides = paragraphs(english / page), paragraphs(chinese / page)
        for name in sides[0].keys() & sides[1].keys():
            text, target = (side[name] for side in sides)
            # what is not translated, such as code, is no pair
            if text and target and text != target:
                pairs[text, target] = pairs.get((text, target), True) and of_test
    seen = {text for (text, _), of_test in pairs.items() if not of_test}
    splits: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    for (text, target), of_test in sorted(pairs.items()):
        if not of_test or text not in seen:
            splits["test" if of_test else "train"].append({"text": text, "target": target})
    return DatasetDict({name: Dataset.from_list(rows) for name, rows in splits.items()})
