"""Whose loss is not finite."""

import math
from collections.abc import Sequence

import numpy as np


class NonFiniteLossError(RuntimeError):
    """The loss or the gradient is NaN or infinite; the weights were not touched."""


def describe(ids: np.ndarray, losses: Sequence[float], norm: float, whole: float) -> str:
    """What is wrong, in words.

    Args:
        ids: this process's chunks.
        losses: a loss for each of them.
        norm: of the gradient.
        whole: sum of the losses of all processes.
    """
    bad = [int(i) for i, loss in zip(ids, losses) if not math.isfinite(loss)]
    if bad:
        return f"the loss of chunk {', '.join(map(str, bad[:8]))} is not finite"
    if not math.isfinite(whole):
        return "the loss of a chunk of another process is not finite"
    some = ", ".join(map(str, ids[:8]))
    return f"the losses are finite, but the gradient's norm is {norm} (chunks {some}, ...)"
