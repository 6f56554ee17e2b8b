"""The command behind `python -m inrun.store`: verify, compact and convert a value store."""

import argparse
import sys
from pathlib import Path

from inrun.plain_text import printable
from inrun.store.compaction import compact
from inrun.store.conversion import convert
from inrun.store.parts import StoreError
from inrun.store.reader import ValueStore


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m inrun.store",
        description="Look after the folder of a value store, for example runs/demo/values.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in (
        ("verify", "look at every checksum and at everything that must agree"),
        ("compact", "make few large parts of many small ones, then verify"),
        ("convert", "make a store of schema version 1 one of the present version, then verify"),
    ):
        commands.add_parser(name, help=what, description=what).add_argument("folder", type=Path)
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Do it and print what verify finds; the exit code is 1 if there is a fault."""
    chosen = _parser().parse_args(arguments)
    try:
        if chosen.command == "compact":
            compact(chosen.folder)
        elif chosen.command == "convert":
            convert(chosen.folder)
        with ValueStore(chosen.folder) as store:
            report = store.report()
    except (StoreError, OSError) as error:
        sys.exit(printable(f"{type(error).__name__}: {error}"))
    sys.stdout.write(printable(f"{report}\n"))
    sys.exit(1 if report.faults else 0)


if __name__ == "__main__":
    main()
