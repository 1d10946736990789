"""
Records of the studies: a JSON file holds the finished runs of a study, so that it can be interrupted.

    python -m course.studies.record            # every study
    python -m course.studies.record reviews    # one of them
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

from synkhorn.hub_export import write_whole
from synkhorn.scripts.measuring.report import machine

from ..exhibit import BUILD, is_live

RESULTS = Path(__file__).parents[1] / "results"
# a study gives the name of each run, and the function that makes it
Run = tuple[str, Callable[[], Any]]
# the seeds of a study, where there is more than one
SEEDS_OF = dict.fromkeys(("reviews", "find", "copy", "sort", "relatives"), "0 to 2") | {"choices": "0 and 1"}
STUDIES: dict[str, Callable[[], Iterator[Run]]] = {}


def study(name: str) -> Callable[[Callable[[], Iterator[Run]]], Callable[[], Iterator[Run]]]:
    """Register a generator of runs as a study."""

    def register(runs: Callable[[], Iterator[Run]]) -> Callable[[], Iterator[Run]]:
        STUDIES[name] = runs
        return runs

    return register


def path_of(name: str) -> Path:
    """The committed record of a study where there is one, but with COURSE_LIVE=1; else one in the build folder."""
    committed = RESULTS / f"{name}.json"
    return committed if committed.is_file() and not is_live() else BUILD / "studies" / f"{name}.json"


@cache
def load(name: str) -> dict[str, Any]:
    """A study with all its runs, made where they are missing: `runs`, and `about`, where they were made."""
    record(name)
    saved = json.loads(path_of(name).read_text(encoding="utf-8"))
    return saved | {"about": saved["about"] | {"seed": SEEDS_OF.get(name, "0")}}


def record(name: str) -> None:
    """Make the runs of a study that its record lacks."""
    study_names()
    path = path_of(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    saved = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"runs": {}}
    for run, function in STUDIES[name]():
        if run in saved["runs"]:
            continue
        torch.set_num_threads(1)
        start = time.perf_counter()
        saved["runs"][run] = function()
        saved["about"] = {"command": f"python -m course.studies.record {name}"} | machine() | {"threads": "1"}
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in saved["runs"].items())
        write_whole(path, f'{{\n"about": {json.dumps(saved["about"])},\n"runs": {{\n{lines}\n}}\n}}\n')
        print(f"{name}: {run}, {time.perf_counter() - start:.0f} s", flush=True)


def study_names() -> list[str]:
    """All studies."""
    from . import language, quality, reading, relatives, settings  # noqa: F401

    return list(STUDIES)


def main(names: list[str]) -> None:
    known = study_names()
    for name in names or known:
        if name not in known:
            raise SystemExit(f"{name!r} is no study: choose one of {', '.join(known)}")
        record(name)


if __name__ == "__main__":
    # the module that the studies register with, not this `__main__`
    from course.studies.record import main as run_main

    run_main(sys.argv[1:])
