"""Gradients of single samples by one backward each, for the oracle."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inrun.conformance.problem import Batch, TrainingRun, Weights, size, take


@dataclass
class Sample:
    """One sample's gradient per parameter, and that of each of its rows."""

    gradient: Weights
    """Parameter's name -> gradient of the sample's share of the step's loss."""
    rows: list[Weights]
    """The same of each row, where the case asks for tokens."""


def sample_gradients(run: TrainingRun, part: Batch) -> list[Sample]:
    """The samples of a micro-batch, on a copy of the model."""
    problem, n = run.problem, size(part)
    model = copy.deepcopy(run.model)
    with torch.random.fork_rng(devices=[]):
        # such a forward is run once for the micro-batch, as training does, and its rows are
        # taken apart
        whole = problem.rows(model, part) if problem.together else None
        return [
            one_sample(
                run,
                model,
                whole[i] if whole is not None else problem.rows(model, take(part, i, i + 1))[0],
            )
            for i in range(n)
        ]


def one_sample(run: TrainingRun, model: nn.Module, rows: Tensor) -> Sample:
    """The gradient of the sum of its rows, and of each of them if the case asks for tokens."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def gradient(loss: Tensor) -> Weights:
        found = torch.autograd.grad(
            loss / run.divisor,
            list(trainable.values()),
            retain_graph=True,
            allow_unused=True,
        )
        return {
            name: torch.zeros_like(p) if g is None else g
            for (name, p), g in zip(trainable.items(), found)
        }

    parts = list(rows.reshape(-1)) if "tokens" in run.case.quantities else []
    return Sample(gradient(rows.sum()), [gradient(row) for row in parts])
