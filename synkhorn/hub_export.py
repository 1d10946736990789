"""Writes the source files that a checkpoint needs, flat, beside its weights, so that it loads without the package."""

import ast
import hashlib
import os
import re
from functools import cache
from importlib.util import find_spec, resolve_name
from pathlib import Path


def source_path(module: str) -> Path:
    """Source file of a module of the package."""
    return Path(find_spec(module).origin)


@cache
def own_imports(module: str) -> frozenset[str]:
    """The package's own modules that `module` imports; an `ImportError` for one that lies outside of the package."""
    tree = ast.parse(source_path(module).read_text(encoding="utf-8"))
    relative = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    folder = module.rpartition(".")[0]
    return frozenset(resolve_name("." * node.level + node.module, folder) for node in relative)


def needed_modules(module: str) -> set[str]:
    """`module` and every module of the package that it needs, directly or not."""
    found: set[str] = set()
    unread = {module}
    while unread:
        found |= unread
        unread = set().union(*(own_imports(name) for name in unread)) - found
    return found


def flat_source(module: str) -> str:
    """Source of a module, its relative imports turned into imports from the same folder."""
    source = source_path(module).read_text(encoding="utf-8")
    return re.sub(r"^(\s*from )\.+(?:\w+\.)*(\w+ import)", r"\1.\2", source, flags=re.MULTILINE)


def write_whole(path: Path, text: str) -> None:
    """Write a file such that a reader finds the old text or the new one, never a part of it."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    # it may be left over, or a link that leads elsewhere
    scratch.unlink(missing_ok=True)
    try:
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, path)
    except BaseException:
        # such as on a full disk
        scratch.unlink(missing_ok=True)
        raise


def export_code(model_type: str, folder: str | os.PathLike) -> list[Path]:
    """
    Write the modeling file of a family, and every module of the package that it needs, flat into a folder.

    Args:
        model_type: the family, such as `synthesizer`, or `encoder-decoder`.
        folder: an existing folder, that of the checkpoint.

    Returns:
        The files written.
    """
    package = __name__.split(".")[0]
    modules = sorted(needed_modules(f"{package}.modeling.modeling_{model_type.replace('-', '_')}"))
    sources = {f"{module.rsplit('.')[-1]}.py": flat_source(module) for module in modules}
    # so that no file is the same in two releases: `AutoModel` runs what it loaded first for an equal configuration file
    digest = hashlib.sha256("\0".join(sources.values()).encode()).hexdigest()
    written = [Path(folder) / name for name in sources]
    for path in written:
        write_whole(path, f"{sources[path.name]}\n# digest of all files: {digest}\n")
    return written
