"""Memory of this process, and of the machine (Linux)."""

import ctypes
import resource
from pathlib import Path


def kilobytes(file: str, field: str) -> int:
    """A field of a file such as /proc/meminfo."""
    for line in Path(file).read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise KeyError(field)


def resident_megabytes(field: str) -> float:
    """`VmRSS`, the memory that the process holds now, or `VmHWM`, the most since `forget_peak`."""
    return kilobytes("/proc/self/status", field) / 1024


def forget_peak() -> None:
    """Set `VmHWM` back to what the process holds now."""
    Path("/proc/self/clear_refs").write_text("5")


def available_bytes() -> int:
    """The memory that the machine has left."""
    return 1024 * kilobytes("/proc/meminfo", "MemAvailable")


def give_back() -> None:
    """Hand what this process has freed back to the machine."""
    ctypes.CDLL(None).malloc_trim(0)


def writable_bytes() -> int:
    """The memory that this process has asked for, used or not."""
    return 1024 * kilobytes("/proc/self/status", "VmData")


def limit_memory(total: int) -> None:
    """Let what this process asks for from now on fail once it would have more than `total` bytes."""
    resource.setrlimit(resource.RLIMIT_DATA, (total, resource.getrlimit(resource.RLIMIT_DATA)[1]))
