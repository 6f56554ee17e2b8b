"""The oracle of the engine's tests: a plain loop of per-sample gradients, and the methods' formulas
written out once more.
"""

import torch
from torch import Tensor, nn


def gradients(model: nn.Module, loss) -> dict[str, Tensor]:
    """Gradient by name; parameters that the loss does not use have zeros."""
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad))
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, parameters, found)}


def dot(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return float(sum((a[name] * b[name]).sum() for name in a))


def first_order(
    model, sample_losses: list, target_loss, lr: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """lr <g_i, grad L>: the totals [n] and by parameter. `sample_losses` and `target_loss` are
    closures.
    """
    V = gradients(model, target_loss())
    per_sample = [gradients(model, loss()) for loss in sample_losses]
    by_name = {
        name: lr * torch.stack([(g[name] * V[name]).sum() for g in per_sample]) for name in V
    }
    return sum(by_name.values()), by_name


def second_order(model, sample_losses: list, target_loss, lr: float, clip: float = 1.0) -> Tensor:
    """lr <g_i, grad L> - lr^2/2 g_i^T H G, with G and g_i after clipping."""
    names, parameters = zip(*model.named_parameters())
    per_sample = [gradients(model, loss()) for loss in sample_losses]
    G = {name: clip * sum(g[name] for g in per_sample) for name in names}
    V = torch.autograd.grad(target_loss(), parameters, create_graph=True)
    scalar = sum((v * G[name]).sum() for name, v in zip(names, V))
    H = torch.autograd.grad(scalar, parameters, allow_unused=True)
    direction = {
        n: lr * v.detach() - (0 if h is None else 0.5 * lr * lr * h) for n, v, h in zip(names, V, H)
    }
    return torch.tensor([clip * dot(g, direction) for g in per_sample], dtype=torch.float64)


def relative_error(value: Tensor, truth: Tensor) -> float:
    """RMS of the difference over RMS of the truth."""
    return float((value.double() - truth.double()).norm() / truth.double().norm())
