"""A process for each model, all of which live side by side and run one at a time, when they are asked."""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch
from transformers.utils import logging

from .benchmark_models import Sizes, base_model, weights
from .memory import available_bytes, forget_peak, give_back, limit_memory, resident_megabytes, writable_bytes

FORWARD, BOTH = "forward", "forward+backward"
PHASES = [FORWARD, BOTH]
# a turn is so long, so that short steps do not find the processor's caches cold
TURN_SECONDS = 0.3
SPARED_BYTES = 2 * 2**30
LEAVE_SECONDS = 2.0
# processes are copies of one that has imported all that they need, which saves seconds and memory for each
CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload([f"{__package__}.benchmark"])


def in_order(phases: list[str]) -> list[str]:
    """The phases that were asked for, forward first; a `ValueError` names one that there is not."""
    for phase in phases:
        if phase not in PHASES:
            raise ValueError(f"--phases {phase!r} is unknown: choose among {', '.join(PHASES)}")
    return [phase for phase in PHASES if phase in phases]


class Failed(Exception):
    """Why a model could not be measured; `is_size` where it takes too long or too much memory."""

    def __init__(self, reason: str, is_size: bool = False):
        super().__init__(reason)
        self.is_size = is_size


class Worker:
    """
    An object in a process of its own.

    Args:
        job: a class, or a function that returns an object, made with `args` in the new process.
        memory_gigabytes: limit of the process, lower where the machine has less; `None` for no limit.
    """

    def __init__(self, job: Callable, *args: Any, memory_gigabytes: float | None):
        self.connection, theirs = CONTEXT.Pipe()
        limit = None if memory_gigabytes is None else int(memory_gigabytes * 2**30)
        self.process = CONTEXT.Process(target=serve, args=(theirs, limit, job, args), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, method: str, *args: Any, timeout: float | None = None) -> Any:
        """
        The result of a method of the object, which is created at the first call.

        Raises:
            Failed: if it raises, runs out of memory or does not answer within `timeout` seconds; the process is ended.
        """
        try:
            self.connection.send((method, args))
            if not self.connection.poll(timeout):
                raise Failed(f"no result within {timeout:.0f} s", is_size=True)
            answer, failure = self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            killed = self.process.exitcode == -signal.SIGKILL
            failure = (f"the process ended with exit code {self.process.exitcode}", killed)
        except Failed:
            self.end()
            raise
        if failure is not None:
            self.end()
            raise Failed(*failure)
        return answer

    def end(self) -> None:
        # a process that waits for a question leaves by itself; one that works is stopped
        self.connection.close()
        self.process.join(LEAVE_SECONDS)
        self.process.kill()
        self.process.join()


def serve(connection: Any, limit: int | None, job: Callable, args: tuple) -> None:
    """Make the object, and answer with what its methods return, or with why they failed."""
    logging.set_verbosity_error()
    empty = writable_bytes()
    allowed = limit
    made = None
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return
        if limit is not None:
            # the others' memory, and some for the rest of the machine, is not this process's to take
            allowed = min(limit, writable_bytes() - empty + available_bytes() - SPARED_BYTES)
            limit_memory(empty + max(allowed, 0))
        try:
            if made is None:
                made = job(*args)
            connection.send((getattr(made, method)(*arguments), None))
        except Exception as error:
            connection.send((None, reason(error, allowed)))
            return
        # others need the room more than this process needs its speed
        if limit is not None and available_bytes() < limit:
            give_back()


def reason(error: Exception, limit: int | None) -> tuple[str, bool]:
    """A table's words for an error, and whether it is one of size."""
    text = str(error).strip()
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in text:
        return "out of memory" if limit is None else f"out of memory ({limit / 2**30:.1f} GB)", True
    return f"{type(error).__name__}: {text.partition(chr(10))[0][:120]}", False


@dataclass(frozen=True)
class Settings:
    """The settings that all cells of a run share."""

    batch_size: int = 1
    device: str = "cpu"
    threads: int = 1
    seed: int = 0


class Steps:
    """Forward, and forward with backward, of a model without a head, on random tokens."""

    def __init__(self, name: str, dtype: str, sizes: Sizes, settings: Settings):
        torch.set_num_threads(settings.threads)
        torch.manual_seed(settings.seed)
        self.device = torch.device(settings.device)
        # libraries are read and kernels chosen by a model of few positions: none of that is the model's memory
        short = Sizes(**vars(sizes) | {"length": min(sizes.length, 128)})
        self.build(name, dtype, short, settings.batch_size)
        for phase in PHASES:
            self.prepare(phase)
            self.step()
        self.build(name, dtype, sizes, settings.batch_size)
        give_back()
        self.held = self.megabytes()

    def build(self, name: str, dtype: str, sizes: Sizes, batch_size: int) -> None:
        model, self.states = base_model(name, sizes)
        self.model = model.to(self.device, getattr(torch, dtype))
        # 0 is the padding token of some
        self.ids = torch.randint(1, sizes.vocab_size, (batch_size, sizes.length), device=self.device)

    def weights(self) -> int:
        return weights(self.model)

    def prepare(self, phase: str) -> None:
        self.trains = phase == BOTH
        self.model.train(self.trains)

    def step(self) -> None:
        with torch.set_grad_enabled(self.trains):
            states = self.states(self.ids)
            if self.trains:
                states.sum().backward()

    def seconds(self) -> float:
        """How long a step takes."""
        # gradients of the last step are freed before the clock starts, as an optimizer does
        self.model.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            self.step()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / 1000
        began = time.perf_counter()
        self.step()
        return time.perf_counter() - began

    def megabytes(self, field: str = "VmRSS") -> float:
        """The memory that is held, or with `VmHWM` the most that was held."""
        if self.device.type == "cuda":
            read = torch.cuda.memory_allocated if field == "VmRSS" else torch.cuda.max_memory_allocated
            return read() / 2**20
        return resident_megabytes(field)

    def first(self, phase: str) -> tuple[float, float]:
        """The first step of a phase: its seconds, and the peak of memory beyond the model and its input."""
        self.prepare(phase)
        self.model.zero_grad(set_to_none=True)
        give_back()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            forget_peak()
        seconds = self.seconds()
        return seconds, self.megabytes("VmHWM") - self.held

    def turn(self) -> float:
        """The median seconds of the steps of a turn."""
        taken = [self.seconds()]
        while sum(taken) < TURN_SECONDS:
            taken.append(self.seconds())
        return sorted(taken)[len(taken) // 2]
