"""How much sooner a curve of losses gets to where another one ends."""

from collections.abc import Sequence

import numpy as np


def iterations_to(level: float, steps: Sequence[int], losses: Sequence[float]) -> float | None:
    """The first iteration at which the loss is `level` or less; None if it never is.

    Linear between evaluations. The first evaluation at or below the level decides, so a curve that
    dips by noise alone gets there early: evaluate on enough text that the curve is smooth at the
    scale of the differences that are claimed.

    Args:
        steps: ascending iterations of the evaluations.
        losses: at these.
    """
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or not len(x) or (np.diff(x) <= 0).any():
        raise ValueError(
            f"steps must ascend and have one loss each, got shapes {x.shape} and {y.shape}"
        )
    if not np.isfinite(y).all() or not np.isfinite(level):
        raise ValueError("losses and level must be finite")
    there = np.flatnonzero(y <= level)
    if not there.size:
        return None
    k = there[0]
    if k == 0:
        return float(x[0])
    share = (y[k - 1] - level) / (y[k - 1] - y[k])
    return float(x[k - 1] + share * (x[k] - x[k - 1]))
