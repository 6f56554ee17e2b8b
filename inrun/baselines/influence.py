"""Influence functions at the final weights with the curvature of all parameters together (Koh and
Liang 2017), solved by iteration.

    value_i = < g_i , (C + damping)^-1 grad L >

Positive = helped: the loss of the target falls where the sample is given more weight.

C is the Gauss-Newton matrix of the mean training loss (never negative; the Hessian where residuals
vanish) or the Hessian itself. Conjugate gradients (Martens 2010) or LiSSA (Agarwal et al. 2017): x
<- v + (I - (C_batch + damping) / scale) x on random batches, averaged over repetitions. Weight
decay of the recipe is not part of C; the damping stands for it. EK-FAC, which scales to large
models, is in `ekfac.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from inrun.baselines.batches import batches
from inrun.baselines.gradients import loss_dots, target_gradient, trained
from inrun.baselines.registry import BaselineError, baseline, value_table
from inrun.baselines.runs import Classified, Regressed, TrainedRun

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class InfluenceOptions:
    """The curvature C, and how (C + damping) is inverted."""

    solver: str = "cg"
    "cg or lissa."
    curvature: str = "gauss_newton"
    "gauss_newton (of a classification or a regression) or hessian."
    damping: float = 0.01
    "Added to C."
    steps: int = 200
    "Of cg at most; of lissa in each repetition."
    tolerance: float = 1e-4
    "cg stops when the residual is below this share of |v|."
    batch: int = 128
    "Samples in a step of lissa."
    repetitions: int = 2
    "Of lissa, averaged."
    scale: float = 0.0
    "Of lissa, above the largest eigenvalue of C; 0 estimates it by power iteration."
    seed: int = 0
    "Of the batches."

    def __post_init__(self):
        if self.solver not in ("cg", "lissa") or self.curvature not in ("gauss_newton", "hessian"):
            raise ValueError(
                f"solver={self.solver!r}, curvature={self.curvature!r}: choose cg or lissa, "
                "gauss_newton or hessian"
            )
        if self.damping <= 0:
            raise ValueError("damping must be positive: C has no inverse without it")


@baseline("influence", InfluenceOptions)
def influence(run: TrainedRun, target: str, options: InfluenceOptions) -> pa.Table:
    """Change of the target's loss when a sample is given more weight, C inverted by iteration."""
    model = run.model()
    v = target_gradient(run, model, target)
    solve = conjugate_gradients if options.solver == "cg" else lissa
    return value_table(run, loss_dots(run, model, solve(run, model, v, options)[None])[0])


def conjugate_gradients(
    run: TrainedRun, model: nn.Module, v: Tensor, options: InfluenceOptions
) -> Tensor:
    """(C + damping)^-1 v. Raises BaselineError if C + damping is not positive definite, or the
    residual stays large.
    """
    ids = np.asarray(run.sample_ids)
    dtype, v = v.dtype, v.double()

    def product(x: Tensor) -> Tensor:
        return (
            curvature_product(run, model, ids, x.to(dtype), options.curvature).double()
            + options.damping * x
        )

    x, residual = torch.zeros_like(v), v.clone()
    direction, square = residual, residual @ residual
    for _ in range(options.steps):
        if square.sqrt() <= options.tolerance * v.norm():
            return x.to(dtype)
        moved = product(direction)
        if (bend := direction @ moved) <= 0:
            raise BaselineError(
                f"influence: {options.curvature} + damping {options.damping:g} has a "
                "negative eigenvalue. Next: curvature=gauss_newton, or more damping"
            )
        step = square / bend
        x, residual = x + step * direction, residual - step * moved
        square, before = residual @ residual, square
        direction = residual + square / before * direction
    raise BaselineError(
        f"influence: the residual is {float(square.sqrt() / v.norm()):.2g} of |v| after "
        f"{options.steps} steps, tolerance {options.tolerance:g}. Next: more steps or damping"
    )


def lissa(run: TrainedRun, model: nn.Module, v: Tensor, options: InfluenceOptions) -> Tensor:
    """An estimate of (C + damping)^-1 v. Raises BaselineError where the recursion grows."""
    ids, rng = np.asarray(run.sample_ids), np.random.default_rng(options.seed)
    scale = options.scale or 1.5 * (_largest_eigenvalue(run, model, ids, options) + options.damping)
    estimates = []
    for _ in range(options.repetitions):
        x = v.clone()
        for _ in range(options.steps):
            batch = rng.choice(ids, min(options.batch, len(ids)), replace=False)
            x = (
                v
                + x
                - (curvature_product(run, model, batch, x, options.curvature) + options.damping * x)
                / scale
            )
        if not torch.isfinite(x).all() or x.norm() > 2 * scale / options.damping * v.norm():
            raise BaselineError(
                f"influence: LiSSA grows with scale {scale:g}. Next: a larger scale, or "
                "larger batches"
            )
        estimates.append(x / scale)
    return torch.stack(estimates).mean(0)


def curvature_product(
    run: TrainedRun, model: nn.Module, ids: np.ndarray, x: Tensor, curvature: str
) -> Tensor:
    """C x for C of the mean loss of these samples, x [p]."""
    total = torch.zeros_like(x)
    for part in batches(ids):
        total += (_hessian_product if curvature == "hessian" else _gauss_newton_product)(
            run, model, part, x
        )
    return total / len(ids)


def _hessian_product(run: TrainedRun, model: nn.Module, ids: np.ndarray, x: Tensor) -> Tensor:
    parameters = list(trained(model).values())
    first = torch.autograd.grad(
        run.losses(model, ids).sum(), parameters, create_graph=True, allow_unused=True
    )
    slope = _slope(first, x, parameters)
    return _flat(torch.autograd.grad(slope, parameters, allow_unused=True), parameters)


def _gauss_newton_product(run: TrainedRun, model: nn.Module, ids: np.ndarray, x: Tensor) -> Tensor:
    """J^T (d^2 loss / d output^2) J x, with J of the outputs: the tangent by differentiating the
    backward pass.
    """
    parameters = list(trained(model).values())
    if isinstance(run, Classified):
        out = run.logits(model, ids)
    elif isinstance(run, Regressed):
        out = run.predictions(model, ids)
    else:
        raise BaselineError(
            f"influence: a {type(run).__name__} has neither logits nor predictions. Next: "
            "curvature=hessian"
        )
    seed = torch.zeros_like(out, requires_grad=True)
    back = torch.autograd.grad(out, parameters, seed, create_graph=True, allow_unused=True)
    slope = _slope(back, x, parameters)
    (tangent,) = torch.autograd.grad(slope, seed, retain_graph=True)
    if isinstance(run, Classified):  # of cross-entropy, smoothed labels or not: diag(p) - p p^T
        p = out.detach().softmax(1)
        bent = p * (tangent - (p * tangent).sum(1, keepdim=True))
    else:
        bent = 2 * tangent
    return _flat(torch.autograd.grad(out, parameters, bent, allow_unused=True), parameters)


def _largest_eigenvalue(
    run: TrainedRun, model: nn.Module, ids: np.ndarray, options: InfluenceOptions
) -> float:
    generator = torch.Generator().manual_seed(options.seed)
    parameters = trained(model).values()
    x = torch.randn(sum(p.numel() for p in parameters), generator=generator).to(
        next(iter(parameters))
    )
    size = 0.0
    for _ in range(20):
        x = x / x.norm()
        x = curvature_product(run, model, ids, x, options.curvature)
        size = float(x.norm())
    return size


def _slope(gradients: Sequence[Tensor | None], x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """The dot of gradients with x [p], differentiable."""
    found = [(g * part).sum() for g, part in zip(gradients, _parts(x, parameters)) if g is not None]
    return sum(found[1:], start=found[0])


def _parts(x: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    return [
        part.view_as(p) for part, p in zip(x.split([p.numel() for p in parameters]), parameters)
    ]


def _flat(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> Tensor:
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(gradients, parameters)]
    )
