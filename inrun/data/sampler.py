"""Which chunks a training step reads: a pure function of (seed, step), so that resuming needs the
step and nothing else.

An epoch is `len(ids)` draws. Without weights it is a permutation: every id once. With weights, id k
appears `floor` or `ceil` of its share `len(ids) * weight_k / sum(weights)` times (systematic
sampling: one random offset per epoch, so that the expectation over epochs is exactly the share), in
random order; equal weights give the permutation again. Batches are consecutive slices of the
endless sequence of epochs, and may straddle two of them.

Randomness is the raw output of the counter-based generator Philox, keyed by (seed, epoch). Only raw
64-bit words are used: NumPy promises these bit for bit across versions, which it does not for
`Generator.permutation`.
"""

from collections.abc import Sequence

import numpy as np


class Sampler:
    """`batch_at(step)` gives the ids of a step: no state, no iterator to save.

    `ids_or_count`: the chunk ids to draw from (any integers), or a count n for 0..n-1. `weights`:
    one non-negative number per id; an id with weight 0 is never drawn. Memory: 16 bytes per id for
    the epoch at hand.
    """

    def __init__(
        self,
        ids_or_count: int | Sequence[int] | np.ndarray,
        batch_size: int,
        seed: int,
        weights: Sequence[float] | np.ndarray | None = None,
    ):
        if isinstance(ids_or_count, int | np.integer):
            ids = np.arange(ids_or_count, dtype=np.int64)
        else:
            ids = np.array(ids_or_count)
            if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
                raise ValueError(
                    f"ids must be one row of integers, got shape {ids.shape} of {ids.dtype}"
                )
            ids = ids.astype(np.int64)
        if ids.size == 0:
            raise ValueError(
                "there is nothing to draw from: the list of ids is empty (check the domain "
                "or kind filter)"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        self.ids = ids
        self.batch_size = int(batch_size)
        self.seed = int(seed)
        self._edges = (
            None if weights is None else _edges(np.asarray(weights, dtype=np.float64), ids.size)
        )
        self._cached_epoch = -1
        self._cached_order = ids

    def batch_at(self, step: int) -> np.ndarray:
        """Ids of training step `step` (counted from 0): np.int64 [batch_size]."""
        if step < 0:
            raise ValueError(f"steps are counted from 0, got {step}")
        first = int(step) * self.batch_size
        batch = np.empty(self.batch_size, dtype=np.int64)
        filled = 0
        while filled < self.batch_size:
            epoch, start = divmod(first + filled, self.ids.size)
            taken = self._order(epoch)[start : start + self.batch_size - filled]
            batch[filled : filled + taken.size] = taken
            filled += taken.size
        return batch

    def epoch_at(self, step: int) -> int:
        """The epoch (counted from 0) that the first draw of this step belongs to."""
        return int(step) * self.batch_size // self.ids.size

    def _order(self, epoch: int) -> np.ndarray:
        if epoch != self._cached_epoch:
            words = np.random.Philox(key=np.array([self.seed, epoch], dtype=np.uint64)).random_raw(
                self.ids.size + 1
            )
            order = np.argsort(words[:-1], kind="stable")
            if self._edges is not None:
                offset = (int(words[-1]) >> 11) / 2**53
                drawn = np.searchsorted(
                    self._edges, np.arange(self.ids.size) + offset, side="right"
                )
                order = drawn[order]
            self._cached_order = self.ids[order]
            self._cached_epoch = epoch
        return self._cached_order


def _edges(weights: np.ndarray, count: int) -> np.ndarray:
    """Right edges of the ids' shares on the line [0, count): draw number d + offset falls into
    exactly one share.
    """
    if weights.shape != (count,):
        raise ValueError(
            f"weights must have one number per id: expected shape ({count},), got {weights.shape}"
        )
    if not np.isfinite(weights).all() or (weights < 0).any() or weights.sum() == 0:
        raise ValueError("weights must be finite, not negative, and not all zero")
    edges = np.cumsum(weights)
    edges = edges * (count / edges[-1])
    if np.ptp(weights) == 0:
        return np.arange(
            1, count + 1, dtype=np.float64
        )  # free of rounding: equal weights are exactly a permutation
    last = np.flatnonzero(weights)[-1]
    edges[last:] = np.inf  # the last draw stays inside, whatever cumsum rounded to
    return edges
