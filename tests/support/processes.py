"""Scripts of this folder and commands, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

SUPPORT = Path(__file__).parent
ROOT = SUPPORT.parent.parent


def run(script: str, *arguments, **environment) -> str:
    """Run a script of this folder in a new process and return what it printed."""
    process = subprocess.run(
        [sys.executable, str(SUPPORT / script), *map(str, arguments)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout
