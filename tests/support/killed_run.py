"""Trains in a process of its own and kills it, with SIGKILL, at a chosen place: `python -m
tests.support.killed_run CONFIG.json PLACE COUNT`.

PLACE is a function, as module:Name or module:Class.name; the process dies when it is entered for
the COUNT-th time. Goes on with the run if it is there.
"""

import functools
import importlib
import json
import os
import signal
import sys
from pathlib import Path

from rich.console import Console

from inrun.train import Run, RunConfig


def deadly(function, count: int):
    left = [count]

    @functools.wraps(function)
    def entered(*arguments, **options):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    return entered


def main(settings: str, place: str, count: str) -> None:
    module, _, path = place.partition(":")
    owner = importlib.import_module(module)
    *classes, name = path.split(".")
    for part in classes:
        owner = getattr(owner, part)
    setattr(owner, name, deadly(getattr(owner, name), int(count)))
    config = RunConfig.from_mapping(json.loads(Path(settings).read_text(encoding="utf-8")))
    folder = Path(config.runs) / config.name
    console = Console(stderr=True)
    run = (
        Run.resume(folder, console)
        if (folder / "run.json").exists()
        else Run.start(config, console)
    )
    run.train()


if __name__ == "__main__":
    main(*sys.argv[1:])
