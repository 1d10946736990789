"""The machine's description, and a Markdown report with its figures in JSON."""

import json
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import torch
import transformers

from synkhorn.hub_export import write_whole


def machine(device: str = "cpu") -> dict[str, str]:
    """The machine that the figures were taken on, and its GPU where that computed them."""
    # Linux only
    listed = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.+)$", listed.read_text(), re.MULTILINE) if listed.exists() else []
    about = {"gpu": torch.cuda.get_device_name()} if device == "cuda" else {}
    about |= {
        "cpu": f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return about | commit()


def commit() -> dict[str, str]:
    """The commit of the package's own repository; nothing where it is installed without one."""
    git = ["git", "-C", str(Path(__file__).parent)]
    if shutil.which("git") is None or not ran([*git, "ls-files", Path(__file__).name]):
        return {}
    return {"commit": ran([*git, "rev-parse", "--short", "HEAD"])}


def ran(command: list[str]) -> str:
    """The output of a command."""
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def about_line(about: dict[str, str]) -> str:
    """The machine in one line of text."""
    return "; ".join(f"{name} {value}" for name, value in about.items())


def with_ending(path: Path, ending: str) -> Path:
    """A path with an ending more; `with_suffix` would replace what follows a point in its name."""
    return path.with_name(path.name + ending)


def write_report(output: Path, markdown: str, figures: dict) -> None:
    """Write `output` with the endings `.md` and `.json`; its folder is made where it is missing."""
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(with_ending(output, ".md"), markdown)
    write_whole(with_ending(output, ".json"), json.dumps(figures, indent=2) + "\n")
