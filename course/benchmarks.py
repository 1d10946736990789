"""The recorded benchmarks of the repository."""

import json
from functools import cache
from typing import Any

from .exhibit import ROOT


@cache
def benchmark(name: str) -> dict[str, Any]:
    """`benchmarks/**/NAME.json`, with where it was made as `about`."""
    paths = sorted((ROOT / "benchmarks").rglob(f"{name}.json"))
    if not paths:
        raise FileNotFoundError(f"no benchmarks/**/{name}.json")
    record = json.loads(paths[0].read_text(encoding="utf-8"))
    place = paths[0].relative_to(ROOT).as_posix()
    return record | {"about": {"command": f"benchmarks: {place}"} | record.get("machine", {})}


def speeds(name: str, phase: str = "forward", dtype: str = "float32") -> dict[str, dict[int, dict[str, Any]]]:
    """Results of a speed benchmark by model and length."""
    rows: dict[str, dict[int, dict[str, Any]]] = {}
    for row in benchmark(name)["results"]:
        if row["phase"] == phase and row["dtype"] == dtype and "ms" in row:
            rows.setdefault(row["model"], {})[row["length"]] = row
    return rows
