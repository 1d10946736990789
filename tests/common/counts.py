"""
Writes a table of the common tests: how many of each class passed, failed and were skipped, and why.

    python tests/common/counts.py build/common_tests.xml benchmarks/tests/common_tests.md
"""

import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

results, output = map(Path, sys.argv[1:])
counts: dict[str, Counter] = {}
reasons: Counter = Counter()
for case in ElementTree.parse(results).iter("testcase"):
    outcome = "passed"
    if case.find("failure") is not None or case.find("error") is not None:
        outcome = "failed"
    elif (skipped := case.find("skipped")) is not None:
        outcome = "skipped"
        reasons[skipped.get("message")] += 1
    counts.setdefault(case.get("classname").rsplit(".")[-1], Counter())[outcome] += 1

total = sum(counts.values(), Counter())
outcomes = ("passed", "failed", "skipped")
lines = [
    "# Transformers' common tests",
    "",
    f"The tests that ship with transformers {version('transformers')}; `make common-tests` writes this file.",
    "",
    "| class of tests | passed | failed | skipped |",
    "|---|---|---|---|",
    *(
        f"| `{name}` | " + " | ".join(str(counts[name][outcome]) for outcome in outcomes) + " |"
        for name in sorted(counts)
    ),
    "| all | " + " | ".join(str(total[outcome]) for outcome in outcomes) + " |",
    "",
    "| skipped because | tests |",
    "|---|---|",
    *(f"| {reason} | {count} |" for reason, count in reasons.most_common()),
]
output.write_text("\n".join(lines) + "\n", encoding="utf-8")
