"""A small net and a training whose every batch has the same loss: used by
tests/engine/test_audit.py and test_audit_passes.py.
"""

import torch
import torch.nn.functional as F
from torch import nn

from inrun import Attributor

N = 6


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def one_step(model, loss, n=N, steps=1, **options) -> Attributor:
    """A training of a few steps whose every batch has this loss."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(3, 5)
    val = options.pop("val", None) or (lambda: model(x).square().mean())
    attr = Attributor(model, optimizer, {"val": val}, **options)
    for _ in range(steps):
        with attr.batch(range(10, 10 + n), forward=loss if attr.options.runs_again else None):
            loss().backward()
        optimizer.step()
        optimizer.zero_grad()
    return attr


def contrastive(model: nn.Module):
    """In-batch negatives: each sample's loss needs all others."""
    a, b = torch.randn(N, 5), torch.randn(N, 5)
    return lambda: F.cross_entropy(model(a) @ model(b).T, torch.arange(N))
