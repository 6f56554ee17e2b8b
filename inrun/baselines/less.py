"""LESS (Xia et al. 2024, definition 3.1): TracIn with the direction in which Adam would move for a
sample, and cosines instead of dots.

    value_i = sum over checkpoints t of  lr_t cos( P Gamma_i(w_t) , P grad L(w_t) )

    Gamma = m' / (sqrt(v') + eps)
    m' = (b1 m + (1 - b1) g_i) / (1 - b1^t),   v' = (b2 v + (1 - b2) g_i^2) / (1 - b2^t)

with m, v of Adam as the checkpoint kept them, t one more than its steps, and P a random projection.
The momentum m is the same for all samples: it moves all cosines alike.
"""

from dataclasses import dataclass

import pyarrow as pa
import torch
from torch import Tensor

from inrun.baselines.gradients import Projection, loss_gradients, target_gradient, trained
from inrun.baselines.registry import baseline, value_table
from inrun.baselines.runs import AdamMoments, Adaptive, AdaptiveRun
from inrun.baselines.tracin import spread


@dataclass(frozen=True)
class LessOptions:
    """Which checkpoints, and how gradients are projected."""

    checkpoints: int = 5
    "Number of them, evenly spread (paper: epochs 10, 20, 30, 40, 50)."
    projection: int = 2048
    "Coordinates, 0 for no projection."
    seed: int = 0
    "Of the projection."


@baseline("less", LessOptions, needs=(Adaptive,))
def less(run: AdaptiveRun, target: str, options: LessOptions) -> pa.Table:
    """Cosines between Adam's direction for a sample and the target's gradient, at checkpoints."""
    project = Projection(options.projection, options.seed)
    total = torch.zeros(len(run.sample_ids), dtype=torch.float64)
    for k in spread(len(run.checkpoints), options.checkpoints):
        model, moments = run.model(k), run.moments(k)
        names = list(trained(model))
        direction = project(target_gradient(run, model, target)[None])[0]
        found = [
            torch.cosine_similarity(
                project(adam_direction(g, moments, names, run.checkpoints[k].step + 1)),
                direction[None],
            )
            for g in loss_gradients(run, model)
        ]
        total += run.checkpoints[k].lr * torch.cat(found).double().cpu()
    return value_table(run, total)


def adam_direction(gradients: Tensor, moments: AdamMoments, names: list[str], step: int) -> Tensor:
    """Gamma of each row of gradients [n, p]; step: of the update that it would be, from 1."""
    b1, b2 = moments.betas
    m, v = (
        torch.cat([kind[name].flatten() for name in names]).to(gradients)
        for kind in (moments.first, moments.second)
    )
    m = (b1 * m + (1 - b1) * gradients) / (1 - b1**step)
    v = (b2 * v + (1 - b2) * gradients**2) / (1 - b2**step)
    return m / (v.sqrt() + moments.eps)
