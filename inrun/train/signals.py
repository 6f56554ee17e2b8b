"""A polite stop: SIGINT and SIGTERM leave a mark that the loop looks at between two steps."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class Interrupted(RuntimeError):
    """SIGINT or SIGTERM came; a checkpoint has been written.

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
    """Inside, a first SIGINT or SIGTERM is noted, and a second one acts at once.

    Signals arrive in the main thread only, elsewhere nothing is done.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore():
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number, frame):
        stop.signum = number
        restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        restore()
