"""The command `inrun`: questions to a run's folder, typed in a terminal.

`inrun --help` lists them. Each takes the folder of a run, or of a value store alone, and prints a
table for people, or with `--json` one line of JSON a row for programs.
"""

from inrun.command.app import main

__all__ = ["main"]
