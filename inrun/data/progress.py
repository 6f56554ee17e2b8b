"""How far a preparation is, and how to show it: one live line on a terminal, a plain line now and
then in a log.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console

SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class Progress:
    """Counts so far, and the tokens and seconds of this run alone (a resumed preparation starts
    them at 0).
    """

    documents: int
    tokens: int
    chunks: int
    run_tokens: int
    run_seconds: float

    def __str__(self) -> str:
        rate = self.run_tokens / max(self.run_seconds, 1e-9)
        return (
            f"{self.documents:,} documents, {self.tokens / 1e6:,.2f} M tokens, "
            f"{self.chunks:,} chunks, "
            f"{rate / 1e6:.2f} M tokens/s"
        )


@contextmanager
def shown(console: Console) -> Iterator[Callable[[Progress], None]]:
    """A `report` for `prepare` that writes to `console`."""
    if console.is_terminal:
        with console.status("reading") as status:
            yield lambda progress: status.update(str(progress))
        return
    last = [time.monotonic()]

    def line(progress: Progress) -> None:
        if time.monotonic() - last[0] >= SECONDS_BETWEEN_LINES:
            last[0] = time.monotonic()
            console.print(str(progress), highlight=False, soft_wrap=True)

    yield line
