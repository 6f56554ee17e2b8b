"""One line that tells how far something is."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console


@contextmanager
def live_line(
    console: Console, label: str, seconds: float = 10.0
) -> Iterator[Callable[[object], None]]:
    """A function that shows its argument on `console`, for as long as the block lasts.

    On a terminal it is one live line, which begins as `label`. Elsewhere, as in a log, it is a
    plain line every so many `seconds` at most.
    """
    if console.is_terminal:
        with console.status(label) as status:
            yield lambda progress: status.update(str(progress))
        return
    last = [time.monotonic()]

    def line(progress: object) -> None:
        if time.monotonic() - last[0] >= seconds:
            last[0] = time.monotonic()
            console.print(str(progress), highlight=False, soft_wrap=True)

    yield line
