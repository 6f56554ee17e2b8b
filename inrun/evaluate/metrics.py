"""How well values agree with a truth or find what they should, with an interval.

All take 1-D arrays, one entry per sample, and return a float. Arrays of different length, not
finite, or for which the figure is not defined (a constant truth, no positives) raise ValueError:
nothing here returns NaN.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from sklearn.metrics import roc_auc_score


@dataclass(frozen=True)
class Interval:
    """A statistic, and the bootstrap interval around it at `level`."""

    estimate: float
    low: float
    high: float
    level: float


def pearson(values: ArrayLike, truth: ArrayLike) -> float:
    """Linear correlation, in [-1, 1]."""
    values, truth = _varying(values, truth)
    return float(stats.pearsonr(values, truth).statistic)


def spearman(values: ArrayLike, truth: ArrayLike) -> float:
    """Rank correlation, in [-1, 1]; ties get their mean rank."""
    values, truth = _varying(values, truth)
    return float(stats.spearmanr(values, truth).statistic)


def relative_rmse(values: ArrayLike, truth: ArrayLike) -> float:
    """Root mean squared error over the standard deviation (divisor n) of the truth.

    1 is what predicting the mean of the truth for every sample scores. An RMSE alone says nothing:
    values scale with the learning rate.
    """
    values, truth = paired(values, truth)
    spread = truth.std()
    if spread == 0:
        raise ValueError("the truth is constant, so an error relative to its spread is not defined")
    return float(np.sqrt(np.mean((values - truth) ** 2)) / spread)


def auroc(scores: ArrayLike, positive: ArrayLike) -> float:
    """Probability that a positive sample scores above a negative one, ties half.

    positive: bool or 0/1. To detect harmful samples (flipped labels) with values, pass `-values`:
    positive value = helpful.
    """
    scores, positive = paired(scores, positive)
    return float(roc_auc_score(_mixed(positive), scores))


def recall_at_k(scores: ArrayLike, relevant: ArrayLike, k: int) -> float:
    """Recall among the `k` highest scores over the recall of a random choice, k / n.

    Paper, appendix E.5.1. Equal to the share of relevant samples among the top k over their share
    among all n. 1 is chance; the most that can be reached is 1 / max(share of relevant, k / n).
    Ties at the k-th score count with the expectation over their order.
    """
    scores, relevant = paired(scores, relevant)
    relevant = _mixed(relevant)
    if not 1 <= k <= len(scores):
        raise ValueError(f"k is {k}; expected 1 to {len(scores)}, the number of samples")
    threshold = np.partition(scores, -k)[-k]
    above, tied = scores > threshold, scores == threshold
    found = relevant[above].sum() + (k - above.sum()) * relevant[tied].mean()
    return float((found / k) / relevant.mean())


def detection_curve(scores: ArrayLike, positive: ArrayLike, shares: ArrayLike) -> np.ndarray:
    """The share of all positives that is found when the highest scores are inspected.

    float64, one for each of the `shares` of samples to inspect, in (0, 1]. A random order finds
    `share` of them, a perfect one min(1, share / share of positives). Ties count with the
    expectation over their order.
    """
    shares = np.asarray(shares, dtype=np.float64)
    if shares.ndim != 1 or not ((shares > 0) & (shares <= 1)).all():
        raise ValueError(f"shares of samples to inspect lie in (0, 1], got {shares}")
    n = len(np.asarray(scores))
    counts = np.maximum(1, np.rint(shares * n)).astype(int)
    return np.array([recall_at_k(scores, positive, int(k)) * k / n for k in counts])


def bootstrap(
    statistic: Callable[..., float],
    *samples: ArrayLike,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of `statistic(*samples)`.

    The arrays are resampled together, by sample: `bootstrap(spearman, values, truth)`.
    Deterministic given the seed. The interval speaks of samples drawn like these; it knows nothing
    of the variation between runs. Raises the statistic's own ValueError if a resample has no value
    (too few positives, say): then there are too few samples for an interval.
    """
    arrays = [np.asarray(sample) for sample in samples]
    result = stats.bootstrap(
        arrays,
        statistic,
        paired=True,
        vectorized=False,
        n_resamples=resamples,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return Interval(float(statistic(*arrays)), float(low), float(high), level)


def paired(first: ArrayLike, second: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Two float64 [n], n at least 2, finite; ValueError otherwise."""
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or len(first) < 2:
        raise ValueError(
            f"expected two 1-D arrays of one length of at least 2, got shapes {first.shape}, "
            f"{second.shape}"
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("NaN or infinite entries; decide what they mean and drop them before")
    return first, second


def _varying(values: ArrayLike, truth: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    values, truth = paired(values, truth)
    for array, name in ((values, "values"), (truth, "truth")):
        if np.ptp(array) == 0:
            raise ValueError(
                f"the {name} are all equal to {array[0]}, so a correlation is not defined"
            )
    return values, truth


def _mixed(flags: np.ndarray) -> np.ndarray:
    if not np.isin(flags, (0, 1)).all():
        raise ValueError("the second array marks samples: bool, or 0 and 1 only")
    if flags.min() == flags.max():
        raise ValueError(f"all samples are marked {bool(flags[0])}; both kinds are needed")
    return flags
