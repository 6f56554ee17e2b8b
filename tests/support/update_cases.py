"""Optimizers with a state, for tests/engine/test_updates.py and test_slopes.py."""

import itertools

import torch

from inrun.updates import (
    Lion,
    snapshot,
)

SGD_FLAGS = [
    dict(zip(("momentum", "dampening", "nesterov", "weight_decay", "maximize"), flags))
    for flags in itertools.product((0.0, 0.9), (0.0, 0.3), (False, True), (0.0, 0.1), (False, True))
    if not (flags[2] and (flags[0] == 0 or flags[1] != 0)) and not (flags[0] == 0 and flags[1] != 0)
]
ADAM_FLAGS = [
    dict(zip(("amsgrad", "maximize", "weight_decay"), flags))
    for flags in itertools.product((False, True), (False, True), (0.0, 0.1))
]


def sgd(**flags):
    return lambda p: torch.optim.SGD(p, lr=0.1, **flags)


def adam(cls=torch.optim.Adam, **flags):
    return lambda p: cls(p, lr=0.01, betas=(0.9, 0.95), eps=1e-6, **flags)


def lion(**flags):
    return lambda p: Lion(p, lr=0.01, betas=(0.9, 0.99), **flags)


ELEMENTWISE = {
    **{f"sgd {flags}": sgd(**flags) for flags in SGD_FLAGS},
    **{f"adam {flags}": adam(**flags) for flags in ADAM_FLAGS},
    **{f"adamw {flags}": adam(torch.optim.AdamW, **flags) for flags in ADAM_FLAGS},
    "lion": lion(),
    "lion decay": lion(weight_decay=0.1),
}


def warm(make, steps: int, shape=(3, 4), dtype=torch.float64):
    """(parameter, optimizer) after some steps with normal gradients."""
    p = torch.nn.Parameter(torch.randn(shape, dtype=dtype))
    optimizer = make([p])
    for _ in range(steps):
        p.grad = torch.randn(shape, dtype=dtype)
        optimizer.step()
    return p, optimizer


def rule_of(p, optimizer):
    return snapshot(optimizer, p, optimizer.param_groups[0])
