"""Charts of a report as Vega-Lite specifications, data inside.

One blue for what helped, one orange for what hurt (they differ for every common colour blindness),
grey for what no sample did. Labels stand at their marks; the page's style sets text colours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inrun.report.errors import ReportError
from inrun.report.facts import Row, TargetFacts

if TYPE_CHECKING:
    import altair as alt

Spec = dict[str, Any]

HELPED, HURT, NOBODY = "#2f6fb0", "#c8641c", "#8a8f98"
#: groups that the waterfall shows on their own
NAMED = 7


def waterfall(facts: TargetFacts) -> Spec:
    """The loss from start to end: drift, each group's values, residual; they add up."""
    alt = altair()
    base = alt.Chart(alt.Data(values=waterfall_rows(facts))).encode(
        alt.Y("name:N", sort=alt.EncodingSortField("place"), title=None, axis=_names(alt))
    )
    title = "nats by which the target's loss fell, added up from the top"
    bars = base.mark_bar(height=15).encode(
        alt.X("from:Q", title=title),
        alt.X2("to"),
        _colour(alt),
        [alt.Tooltip("name:N", title="part"), alt.Tooltip("value:Q", title="nats", format="+.4g")],
    )
    labels = base.mark_text(align="left", dx=5, fontSize=11).encode(
        alt.X("end:Q"), text=alt.Text("label:N")
    )
    return _spec(alt.layer(bars, labels).properties(width="container", height=alt.Step(22)))


def waterfall_rows(facts: TargetFacts) -> list[Row]:
    """A row for each bar: place, name, from, to, value, who, label, end (its right end)."""
    groups = sorted(facts.by_group, key=lambda row: -abs(row["value"]))
    parts = [("momentum and decay", facts.ledger["drift"], True)]
    parts += [(row["group"], row["value"], False) for row in groups[:NAMED]]
    if rest := groups[NAMED:]:
        parts.append((f"{len(rest)} more groups", sum(row["value"] for row in rest), False))
    parts.append(("residual", facts.ledger["residual"], True))
    rows, done = [], 0.0
    for place, (name, value, nobody) in enumerate(parts):
        if value is None:
            continue
        row = {"place": place, "name": name, "from": done, "to": done + value, "value": value}
        row |= {"label": f"{value:+.3g}", "end": max(done, done + value)}
        rows.append({**row, "who": "nobody" if nobody else _who(value)})
        done += value
    return rows


def groups(facts: TargetFacts) -> Spec:
    """Mean value within the step of each group, with its 95 % interval over chunks."""
    alt = altair()
    rows = [
        {
            **row,
            "low": row["within"] - 1.96 * (row["error"] or 0.0),
            "high": row["within"] + 1.96 * (row["error"] or 0.0),
            "who": _who(row["within"]),
        }
        for row in facts.by_group
    ]
    order = alt.EncodingSortField("within", order="descending")
    y = alt.Y("group:N", sort=order, title=None, axis=_names(alt))
    base = alt.Chart(alt.Data(values=rows)).encode(y, _colour(alt))
    title = "mean value within the step (1: as large as is usual in its step)"
    intervals = base.mark_rule(strokeWidth=2).encode(alt.X("low:Q", title=title), alt.X2("high"))
    points = base.mark_circle(size=70, opacity=1).encode(
        alt.X("within:Q"), [alt.Tooltip("group:N"), alt.Tooltip("chunks:Q"), _within(alt)]
    )
    chart = alt.layer(_zero(alt, "x"), intervals, points)
    return _spec(chart.properties(width="container", height=alt.Step(20)))


def course(facts: TargetFacts) -> Spec:
    """One panel a group on common axes: mean value within the step over the run."""
    alt = altair()
    axis = alt.Axis(tickCount=3, grid=False)
    lines = (
        alt.Chart()
        .mark_line(color=HELPED, strokeWidth=1.8, point={"size": 14})
        .encode(
            alt.X("step:Q", title=None, axis=axis),
            alt.Y("within:Q", title=None, axis=axis),
            [alt.Tooltip("group:N"), *_steps(alt), alt.Tooltip("uses:Q"), _within(alt)],
        )
    )
    panel = alt.layer(_zero(alt, "y"), lines, data=alt.Data(values=_middles(facts.course)))
    header = alt.Header(labelFontWeight="bold", labelLimit=200)
    facet = alt.Facet("group:N", title=None, header=header)
    return _spec(panel.properties(width=205, height=80).facet(facet, columns=4))


def ledger_course(facts: TargetFacts) -> Spec:
    """Drift, values and residual of each stretch of the run, stacked, with the drop as a tick."""
    alt = altair()
    whole = _middles(facts.ledger_course)
    names = ("drift", "values", "residual")
    parts = [
        {**row, "part": name, "nats": row[name]}
        for row in whole
        for name in names
        if row[name] is not None
    ]
    scale = alt.Scale(domain=list(names), range=[NOBODY, HELPED, HURT])
    x = alt.X("step:Q", title="step", axis=alt.Axis(grid=False))
    nats = alt.Tooltip("nats:Q", format="+.4g")
    bars = (
        alt.Chart(alt.Data(values=parts))
        .mark_bar(size=14)
        .encode(
            x,
            alt.Y("nats:Q", title="nats"),
            alt.Color("part:N", scale=scale, legend=alt.Legend(title=None, orient="top")),
            [alt.Tooltip("part:N"), nats, *_steps(alt)],
        )
    )
    drops = (
        alt.Chart(alt.Data(values=[{**row, "nats": row["drop"]} for row in whole]))
        .mark_tick(thickness=2, width=16, orient="horizontal")
        .encode(x, alt.Y("nats:Q"), tooltip=[alt.Tooltip("nats:Q", title="drop", format="+.4g")])
    )
    return _spec(alt.layer(bars, drops).properties(width="container", height=170))


def altair() -> Any:
    """The library of charts. Raises ReportError where it is missing."""
    try:
        import altair
    except ImportError as error:
        raise ReportError(
            "charts need the packages altair and vl-convert-python. Next: pip install "
            "'inrun[report]'"
        ) from error
    return altair


def _who(value: float) -> str:
    return "helped" if value >= 0 else "hurt"


def _colour(alt: Any) -> alt.Color:
    scale = alt.Scale(domain=["helped", "hurt", "nobody"], range=[HELPED, HURT, NOBODY])
    return alt.Color("who:N", legend=None, scale=scale)


def _names(alt: Any) -> alt.Axis:
    return alt.Axis(labelLimit=220, ticks=False, domain=False)


def _within(alt: Any) -> alt.Tooltip:
    return alt.Tooltip("within:Q", title="mean within step", format="+.3f")


def _steps(alt: Any) -> list[alt.Tooltip]:
    first = alt.Tooltip("first_step:Q", title="from step")
    return [first, alt.Tooltip("last_step:Q", title="to step")]


def _zero(alt: Any, axis: str) -> alt.Chart:
    return alt.Chart().mark_rule(color=NOBODY).encode(**{axis: alt.datum(0)})


def _middles(rows: list[Row]) -> list[Row]:
    """With the middle of each stretch as its step."""
    return [{**row, "step": (row["first_step"] + row["last_step"]) / 2} for row in rows]


def _spec(chart: Any) -> Spec:
    """The chart as a mapping, in the page's font and without a frame."""
    alt = altair()
    view = alt.ViewConfig(stroke=None)
    return chart.configure(
        background="transparent", font="system-ui, sans-serif", view=view
    ).to_dict()
