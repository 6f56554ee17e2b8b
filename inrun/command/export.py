"""`export`: values in a file for other programs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import typer

from inrun.command.opened import opened
from inrun.command.options import Method, Run, Target
from inrun.command.shown import Printer
from inrun.files import write_file


class Format(StrEnum):
    """What other programs read."""

    csv = "csv"
    parquet = "parquet"


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(export)


def export(
    run: Run,
    output: Annotated[Path, typer.Option("-o", "--output", help="the file to write")],
    to: Annotated[Format | None, typer.Option(help="by the file's ending if left out")] = None,
    target: Target = None,
    method: Method = None,
) -> None:
    """All samples with their summed value, uses, and what is known of them: a row each."""
    kind = to or _by_ending(output)
    with opened(run) as asked:
        tables = []
        for name in asked.targets(target):
            rows = asked.store.values(name, asked.method(method))
            column = pa.array([name] * len(rows), pa.string())
            tables.append(rows.add_column(0, "target", column))
    whole = pa.concat_tables(tables)
    if kind is Format.csv:  # it has no lists
        flat = [field.name for field in whole.schema if not pa.types.is_nested(field.type)]
        whole = whole.select(flat)
    write = pa.csv.write_csv if kind is Format.csv else pa.parquet.write_table
    write_file(output, lambda path: write(whole, path))
    Printer().fields({"rows": len(whole), "file": str(output)})


def _by_ending(output: Path) -> Format:
    try:
        return Format(output.suffix.removeprefix(".").lower())
    except ValueError:
        raise typer.BadParameter(
            f"{output.name!r} ends neither in .csv nor in .parquet: say --to csv or --to parquet"
        ) from None
