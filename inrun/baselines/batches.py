"""Samples in batches, for baselines that put all of them through a model."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from inrun.baselines.runs import Ids

FORWARD = 256  # samples per forward of a model where nothing is kept


def batches(ids: Ids, size: int = FORWARD) -> Iterator[np.ndarray]:
    """`ids` in pieces of `size`, in their order."""
    ids = np.asarray(ids)
    for start in range(0, len(ids), size):
        yield ids[start : start + size]


@torch.no_grad()
def forward(function: Callable[[np.ndarray], Tensor], ids: Ids, size: int = FORWARD) -> Tensor:
    """[n, ...]: what `function` gives for all ids, batch after batch, without gradients."""
    return torch.cat([function(part) for part in batches(ids, size)])
