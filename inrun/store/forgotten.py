"""Writers that nobody closed: their rows are written when the process ends, and stderr says so.

A kill loses the rows since the last flush; an end, also by an error, does not.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable

from inrun.store.buffer import Buffer

#: the buffers of open writers, and whether their store is still theirs
_OPEN: dict[Buffer, Callable[[], bool]] = {}


def watch(buffer: Buffer, is_ours: Callable[[], bool]) -> None:
    """Write the rows of `buffer` at the end of this process, unless it is closed before.

    is_ours: asked then; where another writer has gone on with the store, nothing is written.
    """
    process = os.getpid()
    for known in [known for known in _OPEN if known.closed]:
        del _OPEN[known]
    _OPEN[buffer] = lambda: os.getpid() == process and is_ours()


def leave(buffer: Buffer) -> None:
    """It was closed."""
    _OPEN.pop(buffer, None)


@atexit.register
def _write_all() -> None:
    for buffer, is_ours in _OPEN.items():
        span = buffer.span
        if buffer.closed or span is None or not is_ours():
            continue
        steps = f"the rows of steps {span[0]} to {span[1]}"
        try:
            buffer.write_last()
            told = f"{steps} were written now; the ledger's row of the last step is not among them"
        except Exception as error:  # the process ends: nobody else could tell
            told = f"{steps} are lost ({type(error).__name__}: {error})"
        sys.stderr.write(
            f"inrun: {buffer.store} was not closed. {told}. "
            "Next time: call close(), or use `with`.\n"
        )
