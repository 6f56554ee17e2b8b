"""How much sooner a curve of losses gets to where another one ends."""

from collections.abc import Sequence

import numpy as np


def iterations_to(level: float, steps: Sequence[int], losses: Sequence[float]) -> float | None:
    """The first iteration at which the loss is `level` or less, linear between evaluations; None if
    it never is.

    steps: ascending iterations of the evaluations; losses: at these. The first evaluation at or
    below the level decides, so a curve that dips by noise alone gets there early: evaluate on
    enough text that the curve is smooth at the scale of the differences that are claimed.
    """
    steps, losses = np.asarray(steps, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    if (
        steps.ndim != 1
        or steps.shape != losses.shape
        or not len(steps)
        or (np.diff(steps) <= 0).any()
    ):
        raise ValueError(
            f"steps must ascend and have one loss each, got shapes {steps.shape} and {losses.shape}"
        )
    if not np.isfinite(losses).all() or not np.isfinite(level):
        raise ValueError("losses and level must be finite")
    there = np.flatnonzero(losses <= level)
    if not there.size:
        return None
    k = there[0]
    if k == 0:
        return float(steps[0])
    share = (losses[k - 1] - level) / (losses[k - 1] - losses[k])
    return float(steps[k - 1] + share * (steps[k] - steps[k - 1]))
