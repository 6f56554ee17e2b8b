"""The ledger of a run: drop = drift + values + residual, for one target and method.

The drop of a target's loss over a step is what momentum and weight decay would have done without
its gradients (drift), what is credited to samples (values), and what the method's approximation
leaves over (residual).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True)
class LedgerTotals:
    """The ledger of a run for one target and method, summed over the steps that have a row.

    drift, residual and gap are None if a step has not measured what they need: a partial sum would
    not add up.
    """

    steps: int
    "Number of rows."
    drop: float
    "How far the target's loss fell, in its own units (nats): drift + values + residual."
    drift: float | None
    "What momentum and weight decay would have done without the steps' gradients."
    values: float
    "What is credited to samples."
    residual: float | None
    "What the method's approximation leaves over."
    gap: float | None
    "Efficiency gap (drop - drift - values) / drop, 0 for exact values; None where the drop is 0."


def ledger_totals(rows: pa.Table) -> LedgerTotals:
    """The totals of one or more rows with the columns drop, drift, values, residual."""
    drift, residual = _total(rows, "drift"), _total(rows, "residual")
    drop, values = (math.fsum(rows[name].to_pylist()) for name in ("drop", "values"))
    gap = None if drift is None or drop == 0 else (drop - drift - values) / drop
    return LedgerTotals(len(rows), drop, drift, values, residual, gap)


def _total(rows: pa.Table, name: str) -> float | None:
    return None if rows[name].null_count else math.fsum(rows[name].to_pylist())
