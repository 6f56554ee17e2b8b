"""Representer points (Yeh et al. 2018, theorem 3.1): the logits of the last layer as a sum over
training samples.

The last layer is fitted again on fixed features f, cross-entropy plus lambda |W|^2, until it is
stationary; then

    W = sum_i alpha_i f_i^T,     alpha_i = -1/(2 lambda n) dloss_i/dlogits
    logits(t) = sum_i alpha_i <f_i, f_t>

value_i is what sample i adds to the logit of the right class, averaged over the target. Features
get a constant 1 for the offset, which is penalised like a weight.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from sklearn.linear_model import LogisticRegression

from inrun.baselines.batches import forward
from inrun.baselines.registry import baseline, value_table
from inrun.baselines.runs import Classified, Featured, LabelledRun


@dataclass(frozen=True)
class RepresenterOptions:
    """How the last layer is fitted again."""

    strength: float = 0.003
    "lambda (Yeh et al.: 0.003)."
    tolerance: float = 1e-6
    "Largest entry of the regularised sum's gradient at which the layer counts as stationary."


@baseline("representer", RepresenterOptions, needs=(Featured, Classified))
def representer(run: LabelledRun, target: str, options: RepresenterOptions) -> pa.Table:
    """What a sample adds to the logits of the right classes, averaged over the target."""
    model, ids = run.model(), np.asarray(run.sample_ids)
    with torch.no_grad():
        x = forward(lambda part: run.features(model, part), ids)
        t = run.target_features(model, target)
        classes = run.target_logits(model, target).shape[1]
    x1, t1 = (np.c_[part.double().cpu().numpy(), np.ones(len(part))] for part in (x, t))
    alpha, _ = fit(x1, run.labels(ids).cpu().numpy(), classes, options)
    of_right = alpha[:, run.target_labels(target).cpu().numpy()]  # [n, m]
    return value_table(run, (of_right * (x1 @ t1.T)).mean(1))


def fit(
    x: np.ndarray, labels: np.ndarray, classes: int, options: RepresenterOptions
) -> tuple[np.ndarray, np.ndarray]:
    """alpha [n, classes] and W [classes, d], with W = alpha^T x up to the tolerance; a class
    without a sample has alpha 0.
    """
    n, two = len(x), len(np.unique(labels)) == 2
    # scikit-learn has one weight vector w for two classes: W = (-w, w) / 2, so that lambda |W|^2 is
    # half of lambda |w|^2
    strength = options.strength / 2 if two else options.strength
    layer = LogisticRegression(
        C=1 / (2 * strength * n), fit_intercept=False, tol=options.tolerance, max_iter=10_000
    )
    layer.fit(x, labels)
    W = np.zeros((classes, x.shape[1]))
    p = np.zeros((n, classes))
    p[:, layer.classes_] = layer.predict_proba(x)
    W[layer.classes_] = np.concatenate([-layer.coef_, layer.coef_]) / 2 if two else layer.coef_
    return (np.eye(classes)[labels] - p) / (2 * options.strength * n), W
