"""What a report says of a run, as plain numbers: asked of the value store, one target at a time."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from inrun.store import StoreError, ValueStore, sql_text

Row = dict[str, Any]

#: bins of steps of a time course
BINS = 16
#: groups of a time course; the others are left to the tables
PANELS = 12
#: shares of the chunks that are dropped in the table of thresholds, lowest values first
DROPPED = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)


@dataclass(frozen=True)
class TargetFacts:
    """What one target's values say, by one method."""

    target: str
    method: str
    ledger: Row
    "Fields of `inrun.store.LedgerTotals`."
    losses: tuple[float, float]
    "Of the target, before the first and after the last step of the ledger."
    samples: int
    "How many were used."
    negative: float
    "Share of them with a negative value."
    largest_step: tuple[int, float]
    "The step with the largest share of all |value|, and that share."
    by_group: list[Row]
    "group, chunks, value, share of the sum, mean within the step, its standard error, negative"
    course: list[Row]
    "group, first_step, last_step, uses, within (mean value within the step)"
    ledger_course: list[Row]
    "first_step, last_step, drop, drift, values, residual of each bin"
    dropped: list[Row]
    "share, threshold, chunks, value (what those chunks add up to)"


def target_facts(store: ValueStore, target: str, method: str, group: str | None) -> TargetFacts:
    """The facts of one target. group: a column of `samples` by which chunks are told apart."""
    from inrun.store import ledger_over

    groups = _by_group(store, target, method, group)
    panels = [row["group"] for row in sorted(groups, key=lambda row: -row["chunks"])][:PANELS]
    ledger = dataclasses.asdict(store.ledger(target, method))
    course = _course(store, target, method, group)
    return TargetFacts(
        target=target,
        method=method,
        ledger=ledger,
        losses=_losses(store, target, method),
        samples=sum(row["chunks"] for row in groups),
        negative=store.negative_share(target, method),
        largest_step=_largest_step(store, target, method),
        by_group=groups,
        course=[row for row in course if row["group"] in panels],
        ledger_course=ledger_over(store, BINS, target, method).to_pylist(),
        dropped=_dropped(store, target, method),
    )


def group_column(store: ValueStore) -> str | None:
    """The column of `samples` that tells chunks apart: domain, else label, source or kind."""
    try:
        known = store.sql("SELECT * FROM samples LIMIT 0").column_names
    except StoreError:
        return None
    return next((name for name in ("domain", "label", "source", "kind") if name in known), None)


def within_step(target: str, method: str) -> str:
    """SQL of step, sample_id, value, within: the value over the root mean square of its step."""
    return (
        f'SELECT step, sample_id, CAST("{method}" AS DOUBLE) AS value, '
        f'coalesce(CAST("{method}" AS DOUBLE) / nullif(sqrt(avg(CAST("{method}" AS DOUBLE) ** 2) '
        "OVER (PARTITION BY step)), 0), 0) AS within "
        f"FROM terms WHERE target = {sql_text(target)}"
    )


def agreement(store: ValueStore, target: str) -> list[Row]:
    """Spearman correlation of the summed values of each pair of methods of the run."""
    values = {
        method: store.values(target, method).column("value").to_numpy() for method in store.methods
    }
    return [
        {"first": a, "second": b, "spearman": _spearman(values[a], values[b])}
        for k, a in enumerate(store.methods)
        for b in store.methods[k + 1 :]
    ]


def _spearman(x: np.ndarray, y: np.ndarray) -> float | None:
    from scipy.stats import spearmanr

    return float(spearmanr(x, y).statistic) if len(x) > 2 and x.std() and y.std() else None


def _joined(group: str | None) -> tuple[str, str]:
    """SQL of the group of a row of w, and the join that it needs."""
    if group is None:
        return "'all'", ""
    return (
        f"coalesce(CAST(s.\"{group}\" AS VARCHAR), '(none)')",
        "LEFT JOIN samples s USING (sample_id)",
    )


def _by_group(store: ValueStore, target: str, method: str, group: str | None) -> list[Row]:
    of, join = _joined(group)
    rows = store.sql(
        f"WITH w AS ({within_step(target, method)}), "
        "v AS (SELECT sample_id, sum(value) AS value, avg(within) AS within FROM w GROUP BY ALL) "
        f'SELECT {of} AS "group", count(*) AS chunks, sum(value) AS value, avg(within) AS within, '
        "stddev_samp(within) / sqrt(count(*)) AS error, "
        "count(*) FILTER (WHERE value < 0) / count(*) AS negative "
        f"FROM v {join} GROUP BY 1 ORDER BY within DESC, 1"
    ).to_pylist()
    whole = sum(row["value"] for row in rows)
    return [{**row, "share": row["value"] / whole if whole else None} for row in rows]


def _course(store: ValueStore, target: str, method: str, group: str | None) -> list[Row]:
    of, join = _joined(group)
    return store.sql(
        f"WITH w AS ({within_step(target, method)}), "
        "span AS (SELECT min(step) AS low, max(step) AS high FROM w), "
        f"b AS (SELECT w.*, (step - low) * {BINS} // (high - low + 1) AS bin FROM w, span) "
        f'SELECT {of} AS "group", min(step) AS first_step, max(step) AS last_step, '
        "count(*) AS uses, avg(within) AS within "
        f"FROM b {join} GROUP BY 1, bin ORDER BY 1, bin"
    ).to_pylist()


def _losses(store: ValueStore, target: str, method: str) -> tuple[float, float]:
    where = f"target = {sql_text(target)} AND method = {sql_text(method)}"
    (row,) = store.sql(
        "SELECT arg_min(loss_before, step) AS first, arg_max(loss_after, step) AS last "
        f"FROM ledger WHERE {where}"
    ).to_pylist()
    return row["first"], row["last"]


def _largest_step(store: ValueStore, target: str, method: str) -> tuple[int, float]:
    (row,) = store.sql(
        f"WITH w AS ({within_step(target, method)}), "
        "s AS (SELECT step, sum(abs(value)) AS size FROM w GROUP BY step) "
        "SELECT arg_max(step, size) AS step, max(size) / nullif(sum(size), 0) AS share FROM s"
    ).to_pylist()
    return row["step"], row["share"] or 0.0


def _dropped(store: ValueStore, target: str, method: str) -> list[Row]:
    """By the mean within the step, lowest first, as `inrun select` drops them."""
    rows = store.sql(
        f"WITH w AS ({within_step(target, method)}) SELECT avg(within) AS within, "
        "sum(value) AS value FROM w GROUP BY sample_id ORDER BY within, sample_id"
    )
    within, value = (rows[name].to_numpy() for name in ("within", "value"))
    found = []
    for share in DROPPED:
        count = int(share * len(within))
        if count:
            found.append(
                {
                    "share": share,
                    "threshold": float(within[count - 1]),
                    "chunks": count,
                    "value": float(value[:count].sum()),
                }
            )
    return found
