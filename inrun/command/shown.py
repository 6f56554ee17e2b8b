"""Tables and texts on a terminal, or as JSON for programs."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.table import Table
from rich.text import Text

from inrun.plain_text import plain, printable

Row = Mapping[str, Any]
#: a text is cut here in a table; `inrun show` prints it whole
SNIPPET = 60


class Printer:
    """Prints rows: for people, or one JSON object a line.

    Args:
        as_json: for programs.
    """

    def __init__(self, as_json: bool = False):
        self.as_json = as_json
        self.console = Console()

    def rows(self, rows: Iterable[Row], title: str = "") -> None:
        """All rows have the same columns."""
        found = list(rows)
        if self.as_json:
            self._lines(found)
            return
        columns = list(found[0]) if found else []
        table = Table(title=Text(plain(title)) if title else None, title_justify="left", box=None)
        for column in columns:
            numbers = all(isinstance(row[column], int | float) for row in found)
            table.add_column(Text(plain(column)), justify="right" if numbers else "left")
        for row in found:
            table.add_row(*(Text(cell(row[column])) for column in columns))
        self.console.print(table if found else Text(f"{title}: no rows" if title else "no rows"))

    def table(self, table: pa.Table, title: str = "") -> None:
        """The same for a table of Arrow."""
        self.rows(table.to_pylist(), title)

    def fields(self, fields: Row, title: str = "") -> None:
        """One row, a line for each of its fields."""
        if self.as_json:
            self._lines([fields])
            return
        if title:
            self.console.print(Text(plain(title), style="bold"))
        width = max(map(len, fields), default=0)
        for name, value in fields.items():
            self.console.print(Text(f"  {plain(name):<{width}}  {cell(value)}"), soft_wrap=True)

    def text(self, text: Text | str) -> None:
        """A text of others, whole, with its line breaks; nothing in JSON."""
        if not self.as_json:
            shown = text if isinstance(text, Text) else Text(printable(text))
            self.console.print(shown, soft_wrap=True)

    def hint(self, command: str) -> None:
        """What to type next; on stderr, so that a pipe has the answer alone."""
        if not self.as_json:
            Console(stderr=True).print(Text(f"next: {command}", style="dim"), soft_wrap=True)

    def _lines(self, rows: Sequence[Row]) -> None:
        for row in rows:
            sys.stdout.write(json.dumps(dict(row), default=str, allow_nan=False) + "\n")


def cell(value: Any) -> str:
    """A value on one line: a float with four significant digits, a text that the terminal does not
    obey.
    """
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, float):
        return plain(str(value))
    return "nan" if math.isnan(value) else f"{value:.4g}"


def snippet(text: str) -> str:
    """The beginning of a text on one line."""
    line = plain(text[: 4 * SNIPPET])
    return line if len(line) <= SNIPPET else line[: SNIPPET - 1] + "…"
