"""Pairwise interactions of a step's samples."""

from functools import reduce

import torch
from torch import Tensor

from inrun.attributor.step import OpenStep
from inrun.methods import Method, Target


def interactions(open_step: OpenStep, target: Target, method: Method) -> Tensor:
    """``-eta^2 g_i^T H_L g_j`` [n, n] between the backward and the optimizer's step."""
    tapes = open_step.passes.tapes
    if not open_step.setting.processes.alone:
        raise RuntimeError(
            "interactions() are of samples in one process; train in a single one to see them"
        )
    if not tapes or len(tapes) < len(open_step.passes.done):
        raise RuntimeError(
            "interactions() is called between the backward and optimizer.step(), with a method "
            "whose direction is known after the backward (second_order, path), on a route that "
            "keeps what it needs (tap, fused, whole as long as its memory lasts)"
        )
    gradients, c = open_step.gradients_and_factor()
    step = open_step.view(gradients, c)
    rows = []
    for tape in tapes:
        for j in range(tape.n):
            own = {name: tape.dense(name, j) for name in gradients}
            moved = {
                name: step.pull_back(method, name, c * g.to(gradients[name].dtype))
                for name, g in own.items()
                if g is not None
            }
            _, hvp = target.gradient_and_hvp(moved)
            V = {
                name: step.pull_back(method, name, h)[None]
                for name, h in hvp.items()
                if name in gradients
            }
            rows.append(-c * torch.cat([reduce(torch.add, t.dots(V).values())[0] for t in tapes]))
    return torch.stack(rows)
