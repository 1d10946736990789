"""The figures and tables, by topic. Each module registers what it makes."""

from importlib import import_module
from pathlib import Path


def load_all() -> None:
    """Import every module of figures."""
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem != "__init__":
            import_module(f"{__name__}.{path.stem}")
