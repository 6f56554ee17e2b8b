"""KNN-Shapley (Jia et al. 2019, theorem 1): exact Shapley values of a K-nearest-neighbour
classifier on the run's features, in closed form.

    U(S) = mean over the target's samples of (1/K) sum over the min(K, |S|) nearest members of S
           of 1[label is the target sample's]

With training samples sorted by distance to one target sample, 1 the nearest, and c_i = 1[label is
right]:

    s_n = c_n min(K, n) / (K n)          s_i = s_(i+1) + (c_i - c_(i+1)) / K * min(K, i) / i
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from inrun.baselines.batches import forward
from inrun.baselines.registry import baseline, value_table
from inrun.baselines.runs import Classified, Featured, LabelledRun


@dataclass(frozen=True)
class KNNShapleyOptions:
    """The classifier whose values are exact."""

    k: int = 5
    "Neighbours (paper: 5)."

    def __post_init__(self):
        if self.k < 1:
            raise ValueError(f"k={self.k}: at least one neighbour")


@baseline("knn_shapley", KNNShapleyOptions, needs=(Featured, Classified))
def knn_shapley(run: LabelledRun, target: str, options: KNNShapleyOptions) -> pa.Table:
    """On the features of the final weights ("from the last linear layer"), Euclidean distance."""
    model, ids = run.model(), np.asarray(run.sample_ids)
    with torch.no_grad():
        x = forward(lambda part: run.features(model, part), ids).double()
        distances = torch.cdist(run.target_features(model, target).double(), x)
    right = run.labels(ids)[None] == run.target_labels(target)[:, None]
    return value_table(run, closed_form(distances.cpu().numpy(), right.cpu().numpy(), options.k))


def closed_form(distances: np.ndarray, right: np.ndarray, k: int) -> np.ndarray:
    """float64 [n] from distances and right (bool) [m, n]; equally far samples are taken in their
    order.
    """
    n = distances.shape[1]
    order = np.argsort(distances, axis=1, kind="stable")
    c = np.take_along_axis(right, order, 1).astype(np.float64)
    rank = np.arange(1, n)  # i = 1 .. n-1
    steps = (c[:, :-1] - c[:, 1:]) / k * np.minimum(k, rank) / rank
    last = c[:, -1:] * min(k, n) / (k * n)
    sorted_values = np.concatenate([np.cumsum(steps[:, ::-1], 1)[:, ::-1] + last, last], 1)
    values = np.empty_like(sorted_values)
    np.put_along_axis(values, order, sorted_values, 1)
    return values.mean(0)
