"""A run that diverges ends with one error, whatever of it was found first: whose loss it is."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from inrun.attributor import NonFiniteError
from inrun.methods import NonFiniteTargetError


class NonFiniteLossError(RuntimeError):
    """A loss, a gradient or a value is NaN or infinite; the weights were not touched."""


def refusal(step: int, what: str, folder: Path) -> NonFiniteLossError:
    """The error of a step that is not taken."""
    return NonFiniteLossError(
        f"step {step}: {what}. The weights were not touched, and what was stored before stays. "
        "Next: look at the chunk (Corpus.text), lower optim.lr or raise optim.warmup, and go on "
        f"from the last checkpoint with a new run or resume={folder}"
    )


@contextmanager
def divergence_told(
    step: int, ids: np.ndarray, losses: Callable[[], Sequence[float]], folder: Path
) -> Iterator[None]:
    """In this block what a target or a value finds is told as a loss that is not finite.

    Args:
        step: of the block.
        ids: this process's chunks.
        losses: a loss for each of them, asked for only then.
        folder: of the run.
    """
    try:
        yield
    except (NonFiniteError, NonFiniteTargetError) as error:
        what = _of_chunks(ids, losses())
        found = str(error).removeprefix(f"step {step}: ").partition(". ")[0]
        some = ", ".join(map(str, ids[:8]))
        what = what or f"the losses are finite, but {found} (chunks {some}, ...)"
        raise refusal(step, f"{what}; the run has diverged", folder) from error


def describe(ids: np.ndarray, losses: Sequence[float], norm: float, whole: float) -> str:
    """What is wrong, in words.

    Args:
        ids: this process's chunks.
        losses: a loss for each of them.
        norm: of the gradient.
        whole: sum of the losses of all processes.
    """
    if found := _of_chunks(ids, losses):
        return found
    if not math.isfinite(whole):
        return "the loss of a chunk of another process is not finite"
    some = ", ".join(map(str, ids[:8]))
    return f"the losses are finite, but the gradient's norm is {norm} (chunks {some}, ...)"


def _of_chunks(ids: np.ndarray, losses: Sequence[float]) -> str:
    bad = [int(i) for i, loss in zip(ids, losses) if not math.isfinite(loss)]
    return f"the loss of chunk {', '.join(map(str, bad[:8]))} is not finite" if bad else ""
