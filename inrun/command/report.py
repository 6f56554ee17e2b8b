"""`report`: the run as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inrun.command.opened import opened
from inrun.command.options import Method, Run
from inrun.command.shown import Printer


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(report)


def report(
    run: Run,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="the file; else report.html in the run")
    ] = None,
    method: Method = None,
) -> None:
    """One HTML file: can it be trusted, what kind of text helped, when, which texts."""
    from inrun.report import write_report

    with opened(run) as asked:
        corpus = asked.corpus()
        path = write_report(
            asked.store, output or run, folder=asked.folder, corpus=corpus, method=method
        )
    Printer().fields({"report": str(path), "bytes": path.stat().st_size})
