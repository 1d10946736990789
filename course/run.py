"""
Compute the data of the figures and tables, once for both languages, into `build/course/data/`.

    python -m course.run                           # what is missing, or older than the code and records that make it
    python -m course.run sinkhorn-principle-figure # one of them, anew
"""

import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from transformers.utils import logging

from .exhibit import EXHIBITS, ROOT, Exhibit
from .figures import load_all
from .studies.record import RESULTS, record, study_names


def is_stale(item: Exhibit) -> bool:
    """Whether the data are missing, or older than the studies, their records or the exhibit's own module."""
    if not item.path.is_file():
        return True
    own = ROOT / (item.compute.__module__.replace(".", "/") + ".py")
    sources = [own, *RESULTS.glob("*.json"), *RESULTS.with_name("studies").glob("*.py")]
    return item.path.stat().st_mtime < max(path.stat().st_mtime for path in sources)


def main(names: list[str]) -> None:
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    load_all()
    unknown = [name for name in names if name not in EXHIBITS]
    if unknown:
        raise SystemExit(f"no exhibit {', '.join(unknown)}: choose out of {', '.join(EXHIBITS)}")
    if not names:
        # each study in a process of one thread; figures, which are timed, then stand alone
        with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
            list(pool.map(record, study_names()))
    for name in names or [name for name, item in EXHIBITS.items() if is_stale(item)]:
        start = time.perf_counter()
        torch.manual_seed(0)
        EXHIBITS[name].run()
        print(f"{name}: {time.perf_counter() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
