"""`show`: a text, whole, and what it was worth."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from inrun.command.opened import TEXT, Opened, opened
from inrun.command.options import AsJson, Method, Run, Target
from inrun.command.shown import Printer
from inrun.store import StoreError


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(show)


def show(
    run: Run,
    sample: Annotated[int, typer.Argument(help="id of a chunk or sample")],
    target: Target = None,
    method: Method = None,
    json: AsJson = False,
) -> None:
    """A sample whole: its text, what is known of it, its value in every step that used it."""
    printer = Printer(json)
    with opened(run) as asked:
        about = _about(asked, sample)
        steps = _steps(asked, sample, target, method)
        text = about.pop(TEXT, None)
        if text is None and (corpus := asked.corpus()) is not None:
            text = corpus.text(sample)
        if json:
            printer.fields({**about, TEXT: text, "steps": steps})
            return
        printer.fields({k: v for k, v in about.items() if not isinstance(v, list)})
        printer.rows(steps)
        if text is not None:
            printer.text("\n" + text)


def _about(asked: Opened, sample: int) -> dict[str, Any]:
    """The sample's row of the table `samples`; its id alone where there is none."""
    where = f"WHERE sample_id = {sample}"
    if not asked.store.sql(f"SELECT 1 FROM terms {where} LIMIT 1").num_rows:
        raise StoreError(f"{asked.store.path} has no value of a sample {sample}")
    try:
        rows = asked.store.sql(f"SELECT * FROM samples {where}").to_pylist()
    except StoreError:  # the run kept no table of samples
        rows = []
    return rows[0] if rows else {"sample_id": sample}


def _steps(
    asked: Opened, sample: int, target: str | None, method: str | None
) -> list[dict[str, Any]]:
    """step, target, value, and its rank among the samples of the step, 1 the best."""
    chosen = asked.targets(target)
    column = '"' + asked.method(method) + '"'
    rows = asked.store.sql(
        f"WITH here AS (SELECT DISTINCT step FROM terms WHERE sample_id = {sample}), "
        f"ranked AS (SELECT step, target, sample_id, CAST({column} AS DOUBLE) AS value, "
        f"rank() OVER (PARTITION BY step, target ORDER BY {column} DESC) AS rank, "
        "count(*) OVER (PARTITION BY step, target) AS of_step FROM terms SEMI JOIN here "
        "USING (step)) SELECT step, target, value, rank, of_step AS samples FROM ranked "
        f"WHERE sample_id = {sample} ORDER BY target, step"
    )
    return [row for row in rows.to_pylist() if row["target"] in chosen]
