"""TracIn-CP (Pruthi et al. 2020, equation 1): gradient dots at a few checkpoints, weighted by the
learning rate.

    value_i = sum over checkpoints t of  lr_t < grad l_i(w_t) , grad L(w_t) >

What `first_order` with the SGD formula measures in every step that a sample takes part in,
TracIn-CP estimates from checkpoints, for all samples alike.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from inrun.baselines.gradients import loss_dots, target_gradient
from inrun.baselines.registry import BaselineError, baseline, value_table
from inrun.baselines.runs import TrainedRun


@dataclass(frozen=True)
class TracInOptions:
    """Which checkpoints."""

    checkpoints: int = 5
    "Number of them, evenly spread, the last one included (paper: epochs 10, 20, 30, 40, 50)."


@baseline("tracin", TracInOptions)
def tracin(run: TrainedRun, target: str, options: TracInOptions) -> pa.Table:
    """Gradient dots at checkpoints, weighted by the learning rate."""
    total = torch.zeros(len(run.sample_ids), dtype=torch.float64)
    for k in spread(len(run.checkpoints), options.checkpoints):
        model = run.model(k)
        direction = target_gradient(run, model, target)
        total += run.checkpoints[k].lr * loss_dots(run, model, direction[None])[0].cpu()
    return value_table(run, total)


def spread(available: int, wanted: int) -> list[int]:
    """`wanted` of `available` checkpoints at even distances, ending with the last: 5 of 50 are 9,
    19, 29, 39, 49.
    """
    if not 1 <= wanted <= available:
        raise BaselineError(
            f"checkpoints={wanted}, and the run has {available}; choose 1 to {available}"
        )
    return [round(x) - 1 for x in np.linspace(available / wanted, available, wanted)]
