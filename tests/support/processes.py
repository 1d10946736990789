"""Python in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

SUPPORT = Path(__file__).parent
ROOT = SUPPORT.parent.parent


def python(*arguments, **environment) -> str:
    """`python ARGUMENTS` in a new process: what it printed, once it has ended well."""
    process = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=os.environ | {"PYTHONIOENCODING": "utf-8"} | environment,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def run(script: str, *arguments, **environment) -> str:
    """Run a script of this folder."""
    return python(SUPPORT / script, *arguments, **environment)
