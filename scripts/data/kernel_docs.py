"""
The documentation of Linux 6.1: 498 documents of more than 1,200 words (median 2,114), in 13 subsystems.

Licence: GPL-2.0, most of it; parts as each file says. To get it: the Debian package `linux-doc-6.1`, installed, or
`apt-get download linux-doc-6.1` and `dpkg-deb -x` into a folder that `--data_dir` names.
"""

import gzip
from collections import Counter
from pathlib import Path

from datasets import ClassLabel, Dataset

from .installed import locate

FOLDER = "linux-doc-6.1/Documentation"
ADVICE = "apt install linux-doc-6.1, or `dpkg-deb -x` it into a folder that --data_dir names"
MIN_WORDS, MIN_DOCUMENTS = 1200, 15


def load_kernel_docs(data_dir: str | None = None) -> Dataset:
    """
    `text`, and `label`, the folder at the top of the documentation. Translations are left out, and folders with fewer
    than 15 long documents.
    """
    root = locate(FOLDER, [Path("/usr/share/doc") / FOLDER], ADVICE, data_dir)
    found = []
    for path in sorted(root.glob("*/**/*.rst*")):
        subsystem = path.relative_to(root).parts[0]
        if subsystem != "translations" and path.is_file():
            with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8", errors="replace") as file:
                text = file.read()
            if len(text.split()) > MIN_WORDS:
                found.append((subsystem, text))
    counts = Counter(subsystem for subsystem, _ in found)
    names = sorted(subsystem for subsystem, count in counts.items() if count >= MIN_DOCUMENTS)
    rows = [{"text": text, "label": names.index(subsystem)} for subsystem, text in found if subsystem in names]
    return Dataset.from_list(rows).cast_column("label", ClassLabel(names=names))
