"""A process of its own for each type, with a limit of time and memory.

They are forked from a server that has imported the libraries once.
"""

import multiprocessing
import resource
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from inrun.files import read_json, write_json

Row = dict[str, Any]


class Isolated:
    """Runs `function(name)` in a fresh process, and returns its row.

    Args:
        function: of a module that can be imported; gives a row.
        seconds: after which a process is killed.
        gigabytes: of memory that it may take.
        preload: modules that the server imports, which makes each process a fast one.
    """

    def __init__(
        self,
        function: Callable[[str], Row],
        seconds: float,
        gigabytes: float,
        preload: Sequence[str] = ("experiments.survey.preload",),
    ):
        self.function, self.seconds, self.gigabytes = function, seconds, gigabytes
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(list(preload))

    def row(self, name: str, path: Path) -> Row:
        """The row of a type, kept in `path`; one that says so where the process was ended."""
        arguments = (self.function, name, str(path), int(self.gigabytes * 2**30))
        process = self.context.Process(target=_write, args=arguments, daemon=True)
        process.start()
        process.join(self.seconds)
        if process.is_alive():
            process.kill()
            process.join()
            return _ended(name, path, f"took more than {self.seconds:g} s")
        if process.exitcode or not path.is_file():
            return _ended(name, path, f"its process ended with status {process.exitcode}")
        return read_json(path)


def _ended(name: str, path: Path, why: str) -> Row:
    row = {"type": name, "status": "not built", "why": why}
    write_json(path, row)
    return row


def _write(function: Callable[[str], Row], name: str, path: str, memory: int) -> None:
    warnings.simplefilter("ignore")  # of configs and heads that are as small as no one would choose
    soft = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (memory, soft))
    write_json(path, function(name))
