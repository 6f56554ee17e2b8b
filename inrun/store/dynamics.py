"""Who contributed what, when: values by group over phases of a run, beside what the optimizer did
by itself.

    drop = drift + sum over groups of value + residual                  for every phase and target, over its steps that have a row in the ledger

`share` is a group's part of the positive groups' total (the paper's figure 3 leaves out domains
with a negative total), `mean` its value for each use of a chunk (figure 11), `per_drop` its value
for each unit of progress. The first is blind to scale, the second falls with the learning rate and
as the loss flattens, the third does not.
"""

from __future__ import annotations

import pyarrow as pa

from inrun.store.reader import ValueStore
from inrun.store.tables import text


def dynamics(store: ValueStore, by: str, bins: int, target: str, method: str) -> pa.Table:
    """One row for each bin of equally many steps and group: bin, first_step, last_step, group,
    value, uses, mean, share, per_drop.

    share: null for groups whose total is not positive. Ordered by bin and group.
    """
    rows = store.over("step", bins, by, target, method).to_pylist()
    positive: dict[int, float] = {}
    for row in rows:
        positive[row["bin"]] = positive.get(row["bin"], 0.0) + max(row["value"], 0.0)
    found = [
        {
            **{key: row[key] for key in ("bin", "first_step", "last_step")},
            "group": row[by],
            **{key: row[key] for key in ("value", "uses", "mean")},
            "share": row["value"] / positive[row["bin"]] if row["value"] > 0 else None,
            "per_drop": row["value_per_drop"],
        }
        for row in rows
    ]
    return pa.Table.from_pylist(found, schema=_SCHEMA)


def books(store: ValueStore, bins: int, target: str, method: str) -> pa.Table:
    """One row for each bin of equally many steps: bin, first_step, last_step, steps (in the
    ledger), drop, drift, values, residual, and loss after the last of them.

    drift and residual are null where a step of the bin has not measured them.
    """
    return store.sql(
        f"""
        WITH span AS (SELECT min(step) AS low, max(step) AS high FROM terms WHERE target = {text(target)}),
        rows AS (
            SELECT (step - low) * {int(bins)} // (high - low + 1) AS bin, low, high, ledger.*
            FROM ledger, span WHERE target = {text(target)} AND method = {text(method)} AND step BETWEEN low AND high
        )
        SELECT bin, any_value(low) + (bin * (any_value(high) - any_value(low) + 1) + {int(bins)} - 1) // {int(bins)} AS first_step,
               any_value(low) + ((bin + 1) * (any_value(high) - any_value(low) + 1) + {int(bins)} - 1) // {int(bins)} - 1 AS last_step,
               count(*) AS steps, sum(drop) AS drop, CASE WHEN count(drift) = count(*) THEN sum(drift) END AS drift, sum("values") AS "values",
               CASE WHEN count(residual) = count(*) THEN sum(residual) END AS residual, arg_max(loss_after, step) AS loss_after
        FROM rows GROUP BY bin ORDER BY bin
        """
    )


_SCHEMA = pa.schema(
    [
        ("bin", pa.int64()),
        ("first_step", pa.int64()),
        ("last_step", pa.int64()),
        ("group", pa.string()),
        ("value", pa.float64()),
        ("uses", pa.int64()),
        ("mean", pa.float64()),
        ("share", pa.float64()),
        ("per_drop", pa.float64()),
    ]
)
