"""The precision that a command computes in, by what the machine has."""

import os
import time
from functools import cache
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.utils import is_torch_bf16_gpu_available

from synkhorn_console.parser import AUTO, read_bf16  # noqa: F401

DTYPES = ("float32", "bfloat16", "float16")
# instructions for products in 16 bits, x86's before ARM's; without them a product is emulated, tens of times slower
INSTRUCTIONS = {
    torch.bfloat16: ("amx_bf16", "avx512_bf16", "bf16"),
    torch.float16: ("amx_fp16", "avx512_fp16"),
}
# how many times as fast as in float32 a product must be: less than that is lost again by the casts of autocast
ENOUGH = 1.5
DTYPE_HELP = (
    "Precision of the weights. If not given, the checkpoint's own, or float32 where that is slow on this machine."
)


def device_type(use_cpu: bool | None = None) -> str:
    """Where a `Trainer` computes: on the accelerator, unless there is none or the CPU is asked for."""
    if use_cpu or not torch.accelerator.is_available():
        return "cpu"
    return torch.accelerator.current_accelerator().type


def usable_device(name: str) -> torch.device:
    """
    A device by its name.

    Raises:
        ValueError: if this machine does not have it.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        first, *_ = str(error).splitlines()
        raise ValueError(f"--device {name} cannot be used here ({first}): leave it out, or give cpu") from error
    return device


@cache
def times_faster(dtype: torch.dtype) -> float:
    """How many times as fast as in float32 a product is on this CPU, timed in some milliseconds."""
    left, right = torch.randn(1024, 512), torch.randn(512, 512)

    def seconds(dtype: torch.dtype) -> float:
        factors = left.to(dtype), right.to(dtype)
        times = []
        for _ in range(6):
            start = time.perf_counter()
            torch.mm(*factors)
            times.append(time.perf_counter() - start)
        return min(times)

    return seconds(torch.float32) / seconds(dtype)


def units_for(dtype: torch.dtype, device: str) -> tuple[bool, str]:
    """Whether a device computes in a type of 16 bits faster than in float32, and how one says it."""
    if device == "cuda":
        # emulated, as before Ampere, it is slower than float32; float16 is older
        has_units = dtype == torch.float16 or torch.cuda.is_bf16_supported(including_emulation=False)
    elif device == "cpu":
        capabilities = torch.cpu.get_capabilities()
        found = [name for name in INSTRUCTIONS[dtype] if capabilities.get(name, False)]
        has_units = bool(found) and torch.backends.mkldnn.is_available()
        if has_units:
            times = times_faster(dtype)
            name = str(dtype).removeprefix("torch.")
            return times >= ENOUGH, f"this CPU has {found[0]}, and a product is {times:.1f} times as fast in {name}"
    else:
        has_units = dtype == torch.float16 or is_torch_bf16_gpu_available()
    name = "CPU" if device == "cpu" else f"{device} device"
    return has_units, f"this {name} has {'' if has_units else 'no '}{str(dtype).removeprefix('torch.')} units"


def choose_bf16(asked: bool | str, device: str, is_fp16: bool = False) -> bool:
    """
    Whether to train in bfloat16, which is printed with its reason.

    Args:
        asked: `auto`, or what is to be.
        device: where.
        is_fp16: whether float16 is asked for.
    """
    has_units, reason = units_for(torch.bfloat16, device)
    chosen = has_units and not is_fp16 if asked == AUTO else bool(asked)
    if chosen and not has_units:
        reason = f"as --bf16 asks, though {reason}: --bf16 auto is faster"
    elif is_fp16:
        reason = "as --fp16 asks"
    else:
        reason = f"since {reason}; --bf16 true or false overrides it" if asked == AUTO else "as --bf16 asks"
    if os.environ.get("RANK", "0") == "0":
        name = "bfloat16 autocast" if chosen else "float16 autocast" if is_fp16 else "float32"
        print(f"Precision: {name}, {reason}", flush=True)
    return chosen


def weights_dtype(
    asked: str | None, config: PreTrainedConfig, device: str, remedy: str = "; --dtype overrides it"
) -> Any:
    """
    The type that a checkpoint's weights are loaded in: its own, but float32 where that is of 16 bits and the device is
    slow in it, which is printed.

    Args:
        asked: a name that overrides it.
        config: the checkpoint's.
        device: where it runs.
        remedy: the end of the printed line.
    """
    if asked is not None:
        return getattr(torch, asked)
    saved = config.dtype
    if saved not in INSTRUCTIONS:
        return "auto"
    has_units, reason = units_for(saved, device)
    if has_units:
        return saved
    print(f"Precision: float32, not the checkpoint's {saved}, since {reason}{remedy}", flush=True)
    return torch.float32
