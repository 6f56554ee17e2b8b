"""TRAK (Park et al. 2023, definition 3.1 and algorithm 1): influence of the model linearised in its
own gradient features, averaged over checkpoints.

    value_i = [ mean_t  phi(target)^T (Phi_t^T Phi_t + ridge)^-1 phi_i ]  [ mean_t  q_i ]

    phi = P grad f,   f = log p / (1 - p) of the right class (its margin),   q = 1 - p = -dloss/df

In a regression f is the prediction and q the residual. Phi holds the features of all training
samples, phi(target) the mean gradient of the target's margins; in a regression it is weighted by
the residuals (minus half the gradient of its loss), so that positive still means that the loss
falls. Averaged are checkpoints of one run, as in appendix E.6 of the In-Run paper; Park et al.
average independent runs. They use no ridge and far more samples than coordinates; here there may be
fewer, so that Phi^T Phi has no inverse without one."""

from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import torch
from torch import Tensor, nn

from inrun.baselines.batches import batches
from inrun.baselines.gradients import GRADIENTS, Projection, flat_gradient, sample_gradients
from inrun.baselines.registry import BaselineError, baseline, value_table
from inrun.baselines.runs import Classified, Ids, Regressed, TrainedRun


@dataclass(frozen=True)
class TrakOptions:
    """Which checkpoints, and how gradients are projected."""

    checkpoints: int = 5
    "The last so many of the run."
    projection: int = 2048
    "Coordinates, 0 for no projection."
    ridge: float = 0.1
    "Share of the mean eigenvalue of Phi^T Phi."
    seed: int = 0
    "Of the projection."


@baseline("trak", TrakOptions)
def trak(run: TrainedRun, target: str, options: TrakOptions) -> pa.Table:
    """For a classification (`Classified`) or a regression (`Regressed`)."""
    if not isinstance(run, Classified | Regressed):
        raise BaselineError(
            f"trak needs margins or predictions, and a {type(run).__name__} is neither "
            "Classified nor Regressed"
        )
    if not 1 <= options.checkpoints <= len(run.checkpoints):
        raise BaselineError(
            f"checkpoints={options.checkpoints}, and the run has {len(run.checkpoints)}"
        )
    project = Projection(options.projection, options.seed)
    similarity = torch.zeros(len(run.sample_ids), dtype=torch.float64)
    weight = torch.zeros_like(similarity)
    for k in range(-options.checkpoints, 0):
        model = run.model(k)
        features, q = [], []
        for part in batches(run.sample_ids, GRADIENTS):
            gradients = sample_gradients(model, len(part), partial(outputs, run, model, part))
            features.append(project(gradients))
            q.append(shares(run, model, part))
        towards = project(target_feature(run, model, target)[None])[0]
        similarity += kernel(torch.cat(features).double(), towards.double(), options.ridge).cpu()
        weight += torch.cat(q).double().cpu()
    return value_table(run, similarity * weight / options.checkpoints**2)


def kernel(features: Tensor, towards: Tensor, ridge: float) -> Tensor:
    """[n]: towards^T (Phi^T Phi + ridge)^-1 phi_i, for Phi [n, k]; solved in the smaller of both
    dimensions.
    """
    n, k = features.shape
    small = features.T @ features if k <= n else features @ features.T
    strength = ridge * small.diagonal().sum() / k
    small = small + strength * torch.eye(len(small), dtype=small.dtype, device=small.device)
    if k <= n:
        return features @ torch.linalg.solve(small, towards)
    return torch.linalg.solve(small, features @ towards)


def outputs(run: Classified | Regressed, model: nn.Module, ids: Ids) -> Tensor:
    """[n]: f of training samples."""
    if isinstance(run, Classified):
        return margins(run.logits(model, ids), run.labels(ids))
    return run.predictions(model, ids)


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """[n]: log p / (1 - p) of the labels, from the logits: its own minus the log-sum-exp of the
    others.
    """
    own = torch.nn.functional.one_hot(labels, logits.shape[1]).bool()
    return logits[own] - logits.masked_fill(own, -torch.inf).logsumexp(1)


@torch.no_grad()
def shares(run: Classified | Regressed, model: nn.Module, ids: Ids) -> Tensor:
    """[n]: q of training samples."""
    if isinstance(run, Classified):
        return 1 - torch.sigmoid(margins(run.logits(model, ids), run.labels(ids)))
    return run.numbers(ids) - run.predictions(model, ids)


def target_feature(run: Classified | Regressed, model: nn.Module, target: str) -> Tensor:
    """[p]: gradient of what the target wants more of."""
    if isinstance(run, Classified):
        return flat_gradient(
            model, margins(run.target_logits(model, target), run.target_labels(target)).mean()
        )
    predictions = run.target_predictions(model, target)
    return flat_gradient(
        model, ((run.target_numbers(target) - predictions).detach() * predictions).mean()
    )
