"""
Runs the recipes of docs/training.md as printed, in the new folder that it is given, with a stand-in for the Hub
on the loopback interface, then loads what was pushed, by its name, in a process that cannot import the package.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from loopback_hub import loopback_hub
from processes import ROOT

README = ROOT / "README.md"
USE_BY_NAME = """
import sys
sys.modules["synkhorn"] = None
from transformers import pipeline
print(pipeline("text-classification", sys.argv[1], trust_remote_code=True)("A warm and funny film."))
"""


def blocks(page: Path = README) -> list[str]:
    """The shell code of a page, a text a block."""
    return re.findall(r"^```bash\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def recipes() -> str:
    """The block of the recipes."""
    (block,) = (block for block in blocks(ROOT / "docs" / "training.md") if "synkhorn pretrain" in block)
    return block


if __name__ == "__main__":
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True)
    with loopback_hub(folder / "home") as (hub, repositories):
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | hub | {"PATH": path}
        subprocess.run(["bash", "-euxo", "pipefail", "-c", recipes()], cwd=folder, env=environment, check=True)
        (name,) = repositories
        subprocess.run([sys.executable, "-c", USE_BY_NAME, name], cwd=folder, env=environment, check=True)
