"""What the reports' tables share: choosing rows, and Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from inrun.plain_text import in_markdown


def where(rows: Iterable[dict], **columns: Any) -> list[dict]:
    """The rows that have these values."""
    return [row for row in rows if all(row[key] == value for key, value in columns.items())]


def unique(rows: Iterable[Mapping], key: str) -> list:
    """The values of a column, each once, in the order of first appearance."""
    return list(dict.fromkeys(row[key] for row in rows))


def median(rows: Sequence[Mapping], key: str) -> float:
    return float(np.median([row[key] for row in rows]))


def spread(values: Sequence[float]) -> float:
    """Standard deviation with divisor n - 1; 0 for one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def line(cells: Iterable[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return [line(head), "|" + "---|" * len(head), *map(line, rows)]


def markdown(rows: Sequence[Mapping]) -> str:
    """A Markdown table of all columns, with four significant digits; names are text, not markup."""
    if not rows:
        return ""
    whole = aligned(rows)
    body = ([in_markdown(short(value, 4)) for value in row.values()] for row in whole)
    columns = [in_markdown(str(column)) for column in whole[0]]
    return "\n".join(line(cells) for cells in (columns, ["---"] * len(columns), *body))


def aligned(rows: Sequence[Mapping], last: Sequence[str] = ()) -> list[dict]:
    """Every row with every column, None where it had none.

    Columns come in the order of first appearance, `last` at the end.
    """
    columns = dict.fromkeys(key for row in rows for key in row if key not in last)
    return [{key: row.get(key) for key in (*columns, *last)} for row in rows]


def short(value: Any, digits: int) -> str:
    """A cell: a float with so many significant digits, nothing for None."""
    if value is None:
        return ""
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)
