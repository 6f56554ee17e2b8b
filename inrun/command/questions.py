"""`top`, `bottom`, `by`, `over`, `ledger`, `sql`: what the values say."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from inrun.command.opened import TEXT, Opened, opened
from inrun.command.options import AsJson, Count, Method, Run, Target
from inrun.command.shown import Printer, snippet

Group = Annotated[str | None, typer.Option("--by", help="so many of each group of this column")]
Texts = Annotated[bool, typer.Option("--text/--no-text", help="the beginning of each text")]
#: columns of a ranking that a table has room for
SHOWN = ("sample_id", "value", "uses", "domain", "kind", "label")


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (top, bottom, by, over, ledger, sql):
        app.command()(command)


def top(
    run: Run,
    target: Target = None,
    method: Method = None,
    k: Count = 10,
    by: Group = None,
    text: Texts = True,
    json: AsJson = False,
) -> None:
    """The samples that lowered a target's loss most, best first."""
    _ranked("top", run, target, method, k, by, text, json)


def bottom(
    run: Run,
    target: Target = None,
    method: Method = None,
    k: Count = 10,
    by: Group = None,
    text: Texts = True,
    json: AsJson = False,
) -> None:
    """The samples that raised a target's loss most, worst first."""
    _ranked("bottom", run, target, method, k, by, text, json)


def by(
    run: Run,
    column: Annotated[str, typer.Argument(help="of the samples: domain, kind, label, ...")],
    target: Target = None,
    method: Method = None,
    json: AsJson = False,
) -> None:
    """Sums, means and the negative share of the groups of a column."""
    printer = Printer(json)
    with opened(run) as asked:
        for name in asked.targets(target):
            rows = asked.store.by(column, name, asked.method(method)).to_pylist()
            printer.rows(_named(rows, asked, name, json), _title(asked, name, method))


def over(
    run: Run,
    target: Target = None,
    method: Method = None,
    by: Annotated[str | None, typer.Option("--by", help="a course for each group")] = None,
    bins: Annotated[int, typer.Option(min=1, help="bins of equally many steps")] = 10,
    json: AsJson = False,
) -> None:
    """The time course of the values, beside the drop of the loss."""
    printer = Printer(json)
    with opened(run) as asked:
        for name in asked.targets(target):
            found = asked.store.over("step", bins, by, name, asked.method(method))
            rows = found.to_pylist()
            printer.rows(_named(rows, asked, name, json), _title(asked, name, method))


def ledger(run: Run, target: Target = None, method: Method = None, json: AsJson = False) -> None:
    """drop = drift + values + residual, summed over the run, for each target and method."""
    with opened(run) as asked:
        rows = [
            {"target": name, "method": each, **dataclasses.asdict(asked.store.ledger(name, each))}
            for name in asked.targets(target)
            for each in ([method] if method else asked.store.methods)
        ]
    Printer(json).rows(rows)


def sql(
    run: Run,
    query: Annotated[str, typer.Argument(help="one SELECT of DuckDB over the store's tables")],
    json: AsJson = False,
) -> None:
    """Any question: tables terms, steps, ledger, samples, tokens, and the view values."""
    with opened(run) as asked:
        Printer(json).table(asked.store.sql(query))


def _ranked(
    order: str,
    run: Path,
    target: str | None,
    method: str | None,
    k: int,
    by: str | None,
    text: bool,
    json: bool,
) -> None:
    printer = Printer(json)
    with opened(run) as asked:
        for name in asked.targets(target):
            ask = asked.store.top if order == "top" else asked.store.bottom
            rows = ask(k, name, asked.method(method), by).to_pylist()
            if text:
                rows = _with_texts(asked, rows, whole=json)
            if not json:
                wanted = [*SHOWN, TEXT] if by is None else [by, *SHOWN, TEXT]
                rows = [{c: row[c] for c in dict.fromkeys(wanted) if c in row} for row in rows]
            printer.rows(_named(rows, asked, name, json), _title(asked, name, method))
        if rows and text:
            printer.hint(f"inrun show {run} {rows[0]['sample_id']}")


def _with_texts(asked: Opened, rows: list[dict[str, Any]], whole: bool) -> list[dict[str, Any]]:
    """The rows with the column text: of the samples, or of the corpus, where one of them has it."""
    if all(TEXT not in row for row in rows):
        corpus = asked.corpus()
        if corpus is None:
            return rows
        rows = [{**row, TEXT: corpus.text(row["sample_id"])} for row in rows]
    return rows if whole else [{**row, TEXT: snippet(row[TEXT] or "")} for row in rows]


def _named(
    rows: list[dict[str, Any]], asked: Opened, target: str, json: bool
) -> list[dict[str, Any]]:
    """In JSON each row says whose it is; a table has it in its title."""
    return [{"target": target, **row} for row in rows] if json else rows


def _title(asked: Opened, target: str, method: str | None) -> str:
    return f"target {target}, method {asked.method(method)}"
