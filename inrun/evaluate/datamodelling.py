"""Values against trainings on other samples.

Linear datamodelling score, leave-one-out correlation, agreement between repeats. Axes: n samples
that were valued, k held-out trainings on subsets of them, m outputs of each training, s repeats of
a valuation.
"""

from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike

from inrun.evaluate.metrics import Interval, bootstrap, paired, pearson, spearman


def linear_datamodelling_score(values: ArrayLike, members: ArrayLike, outputs: ArrayLike) -> float:
    """LDS: rank correlation of predicted and real outputs over held-out trainings.

    Park et al. 2023, TRAK, definition 2.5:

        predicted_k = sum_{i in S_k} value_i

    Args:
        values: [n], or [n, m] where every output has values of its own.
        members: bool [k, n], subsets of one size: the sum over a larger set is larger, which is no
            merit.
        outputs: [k] or [k, m], higher = better; mean over several trainings of a subset where there
            are. With values [n], [k]: the output of the whole target.

    Returns:
        The Spearman correlation over the k trainings, averaged over the m outputs.
    """
    values, members, outputs = _designed(values, members, outputs)
    predicted = members @ values
    return float(
        np.mean([spearman(predicted[:, j], outputs[:, j]) for j in range(outputs.shape[1])])
    )


def linear_datamodelling_interval(
    values: ArrayLike,
    members: ArrayLike,
    outputs: ArrayLike,
    level: float = 0.95,
    resamples: int = 1000,
) -> Interval:
    """The score with a bootstrap interval over the held-out trainings, for one output."""
    values, members, outputs = _designed(values, members, outputs)
    if outputs.shape[1] != 1:
        raise ValueError(
            f"an interval is for one output a training, got {outputs.shape[1]}; pass their mean"
        )
    return bootstrap(
        spearman, (members @ values)[:, 0], outputs[:, 0], level=level, resamples=resamples
    )


def leave_one_out_correlation(values: ArrayLike, differences: ArrayLike) -> dict[str, float]:
    """Pearson and Spearman correlation of values [n] with U(all) - U(all without i).

    The differences are averaged over seeds if they are [s, n].
    """
    truth = np.asarray(differences, dtype=np.float64)
    truth = truth.mean(0) if truth.ndim == 2 else truth
    return {"pearson": pearson(values, truth), "spearman": spearman(values, truth)}


def agreement(repeats: ArrayLike) -> np.ndarray:
    """Spearman correlation of every two repeats of a valuation.

    [s (s - 1) / 2] for values [s, n]: 1 if the seed does not matter, 0 if only it does.
    """
    repeats = np.asarray(repeats, dtype=np.float64)
    if repeats.ndim != 2 or len(repeats) < 2:
        raise ValueError(
            f"agreement is between two repeats or more, [s, n]; got shape {repeats.shape}"
        )
    return np.array([spearman(a, b) for a, b in combinations(repeats, 2)])


def _designed(
    values: ArrayLike, members: ArrayLike, outputs: ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    values, outputs = np.asarray(values, dtype=np.float64), np.asarray(outputs, dtype=np.float64)
    members = np.asarray(members)
    values = values[:, None] if values.ndim == 1 else values
    outputs = outputs[:, None] if outputs.ndim == 1 else outputs
    k, n = members.shape if members.ndim == 2 else (0, 0)
    if members.dtype != bool or values.shape != (n, outputs.shape[1]) or len(outputs) != k:
        raise ValueError(
            "expected members bool [k, n], values [n] or [n, m], outputs [k] or [k, m]; got "
            f"{members.dtype} {list(members.shape)}, {list(values.shape)}, {list(outputs.shape)}"
        )
    sizes = members.sum(1)
    if k and np.ptp(sizes):
        raise ValueError(
            f"subsets have {sizes.min()} to {sizes.max()} members; the score compares "
            "subsets of one size"
        )
    paired(outputs.ravel(), outputs.ravel())  # finite, and at least two
    return values, members.astype(np.float64), outputs
