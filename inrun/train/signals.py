"""A polite stop: a signal leaves a mark that the loop looks at between two steps.

SIGINT (Ctrl-C), SIGTERM, SIGHUP (a terminal that was closed), SIGUSR1 (Slurm's `--signal`).
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

#: a second one of these ends the process at once
INSISTING = ("SIGINT", "SIGTERM")
#: these come twice by themselves, from a shell and from the system
REPEATED = ("SIGHUP", "SIGUSR1")


class Interrupted(RuntimeError):
    """A signal came; a checkpoint has been written.

    Attributes:
        signum: the signal's number.
    """

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum = signum


@dataclass
class Stop:
    """Whether the run was told to stop."""

    signum: int | None = None
    """The signal that came, None as long as none did."""


@contextmanager
def stop_signal() -> Iterator[Stop]:
    """Inside, a first signal is noted, and a second SIGINT or SIGTERM acts at once.

    What is ignored (SIGHUP under nohup) stays ignored. Signals arrive in the main thread only,
    elsewhere nothing is done.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    insisting, repeated = _handlers(INSISTING), _handlers(REPEATED)

    def note(number, frame):
        stop.signum = number
        _restore(insisting)

    for number in insisting | repeated:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        _restore(insisting | repeated)


def _handlers(names: tuple[str, ...]) -> dict[signal.Signals, Any]:
    """Signal -> what it does now, of those that this system has and nobody ignores."""
    numbers = [signal.Signals[name] for name in names if hasattr(signal, name)]
    found = {number: signal.getsignal(number) for number in numbers}
    return {number: handler for number, handler in found.items() if handler != signal.SIG_IGN}


def _restore(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
