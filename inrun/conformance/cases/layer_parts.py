"""Bodies of networks that the cases of layers are made from."""

from typing import Any

import torch
from torch import nn

from inrun.conformance.networks import WIDTH


def pair(layer, d: int = WIDTH):
    return lambda: nn.Sequential(layer(d, d + 2), nn.Tanh(), layer(d + 2, d))


def image(*layers, out: int):
    return lambda: nn.Sequential(*(build() for build in layers), nn.Flatten(), nn.Linear(out, 3))


def norm(build):
    return lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), build(), nn.Tanh())


def frozen_first():
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))
    model[0].requires_grad_(False)
    return model


def still_batch_norm():
    norm: Any = nn.BatchNorm1d(4)  # its statistics are tensors here, whatever its type says
    model = nn.Sequential(nn.Conv1d(3, 4, 2), norm, nn.Tanh(), nn.Flatten(), nn.Linear(16, 2))
    generator = torch.Generator().manual_seed(3)
    norm.running_mean.normal_(generator=generator)
    norm.running_var.uniform_(0.5, 2.0, generator=generator)
    norm.eval()
    return model
