"""What a baseline costs: seconds, trainings and memory."""

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Cost:
    """What a score took beside the run itself.

    Trainings that a cache or another process had done already are counted with the seconds that
    they took there.
    """

    cpu_seconds: float
    "Of all threads."
    wall_seconds: float
    "On the clock."
    trainings: int
    "Models that were trained."
    peak_bytes: int | None
    """By how much the resident memory of this process rose above where it stood (on CUDA: the
    allocator's peak instead); None where the system does not tell."""


def record_training(cpu_seconds: float = 0.0, wall_seconds: float = 0.0, count: int = 1) -> None:
    """Charge `count` model trainings to the score that is being measured, if any.

    A training in this process, now, is measured anyway and gives no seconds; one that was found in
    a cache, or done by another process, gives the seconds that it took there.
    """
    if (account := _ACCOUNT.get()) is not None:
        account["cpu"] += cpu_seconds
        account["wall"] += wall_seconds
        account["trainings"] += count


class Clock:
    """CPU and wall seconds since it was made."""

    def __init__(self) -> None:
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def read(self) -> dict[str, float]:
        """By the names of `Cost`: cpu_seconds, wall_seconds."""
        return {
            "cpu_seconds": time.process_time() - self.cpu,
            "wall_seconds": time.perf_counter() - self.wall,
        }


_ACCOUNT: ContextVar[dict[str, float] | None] = ContextVar("account", default=None)


@contextmanager
def metered() -> Iterator[Callable[[], Cost]]:
    """A function that tells what the block has cost so far; trainings are charged inside."""
    account = {"cpu": 0.0, "wall": 0.0, "trainings": 0}
    token = _ACCOUNT.set(account)
    memory = _memory_meter()
    clock = Clock()

    def read() -> Cost:
        here = clock.read()
        return Cost(
            cpu_seconds=here["cpu_seconds"] + account["cpu"],
            wall_seconds=here["wall_seconds"] + account["wall"],
            trainings=int(account["trainings"]),
            peak_bytes=memory(),
        )

    try:
        yield read
    finally:
        _ACCOUNT.reset(token)


def _memory_meter() -> Callable[[], int | None]:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        return lambda: torch.cuda.max_memory_allocated() - before
    try:
        # the high-water mark starts again from what is resident now
        Path("/proc/self/clear_refs").write_text("5")
        resident = _status_bytes("VmHWM")
        return lambda: max(0, _status_bytes("VmHWM") - resident)
    except OSError:
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def risen() -> int | None:  # a mark that cannot be reset tells something only if it was passed
        now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return now - highest if now > highest else None

    return risen


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")
