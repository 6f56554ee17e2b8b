"""The HTML file of a report: template, style, script, charts and cards in one."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from inrun.files import read_json, write_text
from inrun.report import charts
from inrun.report.errors import ReportError
from inrun.report.facts import TargetFacts, agreement, group_column, target_facts
from inrun.report.texts import cards
from inrun.store import StoreError, ValueStore

if TYPE_CHECKING:
    from inrun.data.corpus import Corpus

#: a report is at most so long, in bytes; fewer texts are shown where it would be longer
LONGEST = 5_000_000
#: what a gap between ledger and values means for a reader: below it, verdict
VERDICTS = (
    (0.1, "good", "The values add up to what the training did."),
    (0.4, "fair", "Values are approximate; the order of the chunks holds."),
    (float("inf"), "poor", "The values do not explain this run: use the method path."),
)


def write_report(
    store: ValueStore,
    file: str | Path,
    *,
    folder: Path | None = None,
    corpus: Corpus | None = None,
    method: str | None = None,
) -> Path:
    """Write what `store` says into one HTML file. Returns its path.

    Args:
        store: the values.
        file: where to; a folder gets report.html.
        folder: the run's, for what it was made with.
        corpus: the train split, for texts that the table `samples` does not hold.
        method: the run's first if None.

    Raises:
        ReportError: vl-convert is missing, or no step was valued.
    """
    path = Path(file)
    path = path / "report.html" if path.is_dir() else path
    method = store.methods[0] if method is None else method
    try:
        facts = [target_facts(store, name, method, group_column(store)) for name in store.targets]
    except StoreError as error:
        raise ReportError(f"nothing to show of {store.path}: {error}") from error
    count = 12
    while True:
        page = _page(store, facts, cards(store, method, corpus, count), method, folder)
        if len(page.encode()) <= LONGEST or count == 1:
            return write_text(path, page)
        count //= 2


def _page(
    store: ValueStore,
    facts: list[TargetFacts],
    shown: list[dict[str, Any]],
    method: str,
    folder: Path | None,
) -> str:
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"json": _json, "signed": _signed}
    template = environment.from_string(_resource("page.html"))
    specs = {
        f"{kind}-{number}": make(each)
        for number, each in enumerate(facts)
        for kind, make in (
            ("waterfall", charts.waterfall),
            ("ledger", charts.ledger_course),
            ("groups", charts.groups),
            ("course", charts.course),
        )
    }
    return template.render(
        name=store.path.resolve().parent.name,
        method=method,
        facts=facts,
        verdicts=[_verdict(each) for each in facts],
        heat=heat_table(facts),
        agreement=[(name, agreement(store, name)) for name in store.targets],
        cards=shown,
        specs=specs,
        made=_made(store, folder),
        style=_resource("style.css"),
        cards_script=_resource("cards.js"),
        charts_script=charts_script(),
    )


def heat_table(facts: list[TargetFacts]) -> list[dict[str, Any]]:
    """A row for each group, a cell for each target, with its colour from -1 (hurt) to 1."""
    by_target = [{row["group"]: row for row in each.by_group} for each in facts]
    sizes = [
        max((abs(row["within"]) for row in rows.values()), default=0.0) or 1.0 for rows in by_target
    ]
    rows = []
    for name in [row["group"] for row in facts[0].by_group]:
        cells = []
        for rows_of, size in zip(by_target, sizes):
            row = rows_of.get(name)
            cells.append({**row, "colour": row["within"] / size} if row else None)
        rows.append({"group": name, "cells": cells})
    return rows


def _verdict(facts: TargetFacts) -> tuple[str, str]:
    """(class of its colour, sentence) for the gap of a target's ledger."""
    gap = facts.ledger["gap"]
    if gap is None:
        return "fair", "The gap is not known: drift was not measured at every step."
    return next((kind, text) for limit, kind, text in VERDICTS if abs(gap) <= limit)


def _made(store: ValueStore, folder: Path | None) -> dict[str, Any]:
    """What the run was made with, as lines of name and text."""
    about = {key: value for key, value in store.run.items() if value not in (None, {}, [])}
    if folder is not None:
        record = read_json(folder / "run.json")
        about |= {
            key: record[key] for key in ("corpus", "parameters", "precision") if key in record
        }
    return {
        key: value if isinstance(value, str) else json.dumps(value, indent=1, default=str)
        for key, value in about.items()
    }


def _signed(number: float | None, digits: int = 3) -> str:
    return "" if number is None else f"{number:+.{digits}g}"


def _json(value: Any) -> jinja2.utils.markupsafe.Markup:
    """JSON inside a script element, which no text in it can end."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=True)
    return jinja2.utils.markupsafe.Markup(text.replace("<", "\\u003c"))


def _resource(name: str) -> str:
    return resources.files("inrun.report").joinpath(name).read_text(encoding="utf-8")


def charts_script() -> str:
    """JavaScript that draws Vega-Lite: `window.vegaEmbed`.

    Raises ReportError where it is missing.
    """
    alt = charts.altair()
    try:
        import vl_convert
    except ImportError as error:
        raise ReportError(
            "charts need the package vl-convert-python. Next: pip install 'inrun[report]'"
        ) from error
    version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    # the stubs ask for a snippet that the function does without
    return vl_convert.javascript_bundle(vl_version=version)  # type: ignore[call-arg]
