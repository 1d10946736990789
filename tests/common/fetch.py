"""
Fetches Transformers' own common tests: those of the installed version's source distribution, into `build/`.

    python tests/common/fetch.py
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "build" / f"transformers-{version('transformers')}"


def fetch(folder: Path = FOLDER) -> None:
    """Unpack `tests/` of the source distribution of `transformers` into `folder`, unless it is there."""
    if folder.exists():
        return
    release = folder.name.replace("-", "==")
    # without isolation, setuptools is that of the test extra, and nothing else is downloaded
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
    folder.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        subprocess.run([*command, "--no-binary=transformers", f"--dest={scratch}", release], check=True)
        (archive,) = Path(scratch).glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            members = [member for member in tar.getmembers() if member.name.startswith(f"{folder.name}/tests/")]
            tar.extractall(scratch, members, filter="data")
        tests = Path(scratch, folder.name, "tests")
        # what the tests open on import or set-up and the distribution lacks
        (tests / "utils").mkdir()
        (tests / "utils" / "tiny_model_summary.json").write_text("{}", encoding="utf-8")
        (tests / "fixtures").mkdir()
        shutil.copy(ROOT / "README.md", tests / "fixtures" / "sample_text.txt")
        tests.parent.rename(folder)


if __name__ == "__main__":
    fetch()
