"""Who contributed what, when: values by group over phases of a run, beside what the optimizer did
by itself.

    drop = drift + sum over groups of value + residual

holds for every phase and target, over its steps that have a row in the ledger.

`share` is a group's part of the positive groups' total (the paper's figure 3 leaves out domains
with a negative total), `mean` its value for each use of a chunk (figure 11), `per_drop` its value
for each unit of progress. The first is blind to scale, the second falls with the learning rate and
as the loss flattens, the third does not.
"""

from __future__ import annotations

import pyarrow as pa

from inrun.store import queries
from inrun.store.reader import ValueStore


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


def ledger_over(store: ValueStore, bins: int, target: str, method: str) -> pa.Table:
    """One row for each bin of equally many steps: bin, first_step, last_step, steps (in the
    ledger), drop, drift, values, residual, and loss after the last of them.

    drift and residual are null where a step of the bin has not measured them.
    """
    return store.sql(queries.ledger_course(target, method, int(bins)))


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
