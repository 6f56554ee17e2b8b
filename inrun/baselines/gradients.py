"""Gradients of single samples at a checkpoint, for baselines: their dots with directions, or
written out, or projected.

All per-sample quantities come from one backward pass per batch, through `inrun.ghost`. Gradients
are flat vectors here, parameters in the order of `named_parameters()`. Axes: n samples, p
parameters, k directions or projected coordinates.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from inrun.baselines.batches import batches
from inrun.baselines.runs import TrainedRun
from inrun.ghost import StreamingDots, Tape, UseTracker
from inrun.ghost.backward import grad
from inrun.ghost.tape import Recorder

GRADIENTS = 64  # samples whose gradients are in memory at once
BLOCK = 2**22  # entries of the projection that are drawn at once


def trained(model: nn.Module) -> dict[str, Tensor]:
    """name -> parameter that requires a gradient."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def target_gradient(run: TrainedRun, model: nn.Module, target: str) -> Tensor:
    """[p]: gradient of the target's mean loss."""
    return flat_gradient(model, run.target_losses(model, target).mean())


def flat_gradient(model: nn.Module, scalar: Tensor) -> Tensor:
    """[p]: zeros for parameters that the scalar does not depend on."""
    parameters = list(trained(model).values())
    found = torch.autograd.grad(scalar, parameters, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, found)]
    )


def loss_dots(run: TrainedRun, model: nn.Module, directions: Tensor) -> Tensor:
    """float64 [k, n]: dots of the gradient of every training sample's loss with directions [k, p];
    nothing of size n x p is held.
    """
    V = unflattened(model, directions)

    def take(part: np.ndarray) -> Tensor:
        dots = StreamingDots(V, len(part))
        _backward(model, dots, lambda: run.losses(model, part))
        first, *rest = dots.by_parameter.values()
        return sum(rest, start=first)

    return torch.cat([take(part) for part in batches(run.sample_ids, GRADIENTS)], dim=1)


def loss_gradients(run: TrainedRun, model: nn.Module) -> Iterator[Tensor]:
    """[batch, p], batch after batch: the gradient of each training sample's loss, in the order of
    `sample_ids`.
    """
    for part in batches(run.sample_ids, GRADIENTS):
        yield sample_gradients(model, len(part), partial(run.losses, model, part))


def sample_gradients(model: nn.Module, n: int, outputs: Callable[[], Tensor]) -> Tensor:
    """[n, p]: the gradient of each of n outputs, one per sample; `outputs` runs the model on those
    samples.
    """
    tape = Tape(n)
    _backward(model, tape, outputs)
    rows = []
    for name, p in trained(model).items():
        dense = [tape.dense(name, i) for i in range(n)]
        rows.append(
            torch.stack([torch.zeros_like(p) if g is None else g for g in dense]).flatten(1)
        )
    return torch.cat(rows, 1)


def unflattened(model: nn.Module, vectors: Tensor) -> dict[str, Tensor]:
    """[k, p] -> name -> [k, *shape]."""
    parameters = trained(model)
    parts = vectors.split([p.numel() for p in parameters.values()], dim=1)
    return {name: part.reshape(-1, *p.shape) for (name, p), part in zip(parameters.items(), parts)}


class Projection:
    """Random projection of flat gradients, p to `size` coordinates: entries +-1/sqrt(size), so that
    dots are kept on average (Johnson and Lindenstrauss).

    The same seed gives the same matrix; it is drawn block by block whenever it is used and never
    held whole. If `size` is 0, or not below p, gradients stay as they are.
    """

    def __init__(self, size: int, seed: int = 0):
        self.size, self.seed = size, seed

    def __call__(self, gradients: Tensor) -> Tensor:
        """[n, p] -> [n, size]"""
        p = gradients.shape[1]
        if not 0 < self.size < p:
            return gradients
        generator = torch.Generator(gradients.device).manual_seed(self.seed)
        out, rows = gradients.new_zeros(len(gradients), self.size), max(1, BLOCK // self.size)
        for start in range(0, p, rows):
            part = gradients[:, start : start + rows]
            signs = torch.randint(
                0, 2, (part.shape[1], self.size), generator=generator, device=gradients.device
            )
            out += part @ (2.0 * signs - 1.0).to(part.dtype)
        return out / self.size**0.5


def _backward(model: nn.Module, recorder: Recorder, outputs: Callable[[], Tensor]) -> None:
    parameters: Mapping[str, Tensor] = trained(model)
    tracked = {id(p) for p in parameters.values()}
    constants = [*model.buffers(), *(p for p in model.parameters() if id(p) not in tracked)]
    # in the caller's thread, where the context is active
    with (
        torch.autograd.set_multithreading_enabled(False),
        UseTracker(parameters, constants, recorder),
        torch.enable_grad(),
    ):
        grad([outputs().sum()], list(parameters.values()))
