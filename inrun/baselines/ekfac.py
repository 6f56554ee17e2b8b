"""Influence functions at the final weights, with the curvature in Kronecker factors: any model, any
number of targets at once.

    value_i = < g_i , (F + damping)^-1 grad L >

with g_i the gradient of the sample's own loss and L the target's loss: the first-order change of
the target's loss when sample i is given more weight in a training that has converged (Koh and Liang
2017), positive where it falls. F is the Fisher matrix, which for softmax losses equals the
Gauss-Newton matrix. A weight that is used by matrix products has, for layer inputs a and output
gradients b, the eigenvalue-corrected approximation (George et al. 2018; Grosse et al. 2023, section
2.2)

    A = E sum_t a a^T = Qa .. Qa^T      B = E sum_t b b^T = Qb .. Qb^T
    F ~ (Qb x Qa) diag(L) (Qb x Qa)^T   L = E (Qb^T g Qa)^2

Everything else (vectors, filters, tables, and weights with a side above `max_side`, whose factors
would be too large) has the diagonal L = E g^2. Blocks of different parameters do not interact. The
damping of a block is a share of its mean L.

The per-sample factors come from `inrun.ghost`, and the last step is its one primitive: dots of
per-sample gradients with directions V = (F + damping)^-1 grad L. Axes: n samples, t tokens, i in, o
out, k targets.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inrun.baselines.batches import batches
from inrun.baselines.gradients import trained as trained_parameters
from inrun.baselines.registry import BaselineError, baseline, value_table
from inrun.baselines.runs import Classified, Ids, TrainedRun
from inrun.ghost import StreamingDots, Tape, UseTracker
from inrun.ghost.backward import grad
from inrun.ghost.origin import Parameter
from inrun.ghost.tape import Recorder
from inrun.rules.factors import Factor, Outer, wide


@runtime_checkable
class Sampled(Protocol):
    """sampled_losses(model, ids, seed): the training loss of each sample with labels drawn from the
    model's prediction.
    """

    def sampled_losses(self, model: nn.Module, ids: Ids, seed: int) -> Tensor:
        """[len(ids)], differentiable; independent labels for another seed."""


@dataclass(frozen=True)
class EKFACOptions:
    """How the curvature is estimated."""

    damping: float = 0.1
    "Share of a block's mean eigenvalue (Grosse et al.: 0.1)."
    fisher: str = "sampled"
    "sampled: labels drawn from the model, the Fisher matrix proper. empirical: the samples' own."
    samples: int = 0
    "Training samples that the curvature is estimated on, 0 for all."
    max_side: int = 2048
    "A weight with a longer side has a diagonal instead of factors."
    params: str = ""
    "Regular expression of the parameters that count, empty for all."
    batch: int = 16
    "Samples that go through the model at once."
    seed: int = 0
    "Of samples and drawn labels."

    def __post_init__(self):
        if self.fisher not in ("sampled", "empirical"):
            raise ValueError(f"fisher={self.fisher!r}: choose sampled or empirical")
        if self.damping <= 0 or self.batch < 1 or self.samples < 0:
            raise ValueError("damping must be positive, batch 1 or more, samples 0 or more")


@baseline("influence_ekfac", EKFACOptions)
def influence_ekfac(run: TrainedRun, target: str, options: EKFACOptions) -> pa.Table:
    """Influence function with the EK-FAC curvature, at the final weights."""
    return value_table(run, EKFAC(run, options).values([target])[target])


@dataclass
class _Kronecker:
    """Qa [i,i], Qb [o,o], eigenvalues [o,i] of one weight, whose gradient is read as [o,i]."""

    Qa: Tensor
    Qb: Tensor
    eigenvalues: Tensor

    def solve(self, g: Tensor, damping: float) -> Tensor:
        inside = self.Qb.T @ g.reshape(self.eigenvalues.shape) @ self.Qa
        return (self.Qb @ (inside / _damped(self.eigenvalues, damping)) @ self.Qa.T).reshape(
            g.shape
        )


@dataclass
class _Diagonal:
    """eigenvalues: the parameter's shape."""

    eigenvalues: Tensor

    def solve(self, g: Tensor, damping: float) -> Tensor:
        return g / _damped(self.eigenvalues, damping)


def _damped(eigenvalues: Tensor, damping: float) -> Tensor:
    """A block that no sample has a gradient in has no curvature and no gradient of a sample to be
    dotted with either: it is left as it is.
    """
    mean = eigenvalues.mean()
    return eigenvalues + damping * mean if mean > 0 else torch.ones_like(eigenvalues)


class EKFAC:
    """The curvature of a run's training loss at its final weights, for many targets.

    Attributes:
        kronecker, diagonal: names of the parameters with either form.
    """

    def __init__(self, run: TrainedRun, options: EKFACOptions):
        self.run, self.options, self.model = run, options, run.model()
        self.parameters = _chosen(self.model, options.params)
        tracked = {id(p) for p in self.parameters.values()}
        self._constants = [
            *self.model.buffers(),
            *(p for p in self.model.parameters() if id(p) not in tracked),
        ]
        ids = np.asarray(run.sample_ids)
        if 0 < options.samples < len(ids):
            ids = np.sort(
                np.random.default_rng(options.seed).choice(ids, options.samples, replace=False)
            )
        bases = self._eigenbases(ids)
        self._blocks = self._eigenvalues(ids, bases)
        self.kronecker = sorted(bases)
        self.diagonal = sorted(set(self._blocks) - set(bases))

    def values(self, targets: Sequence[str]) -> dict[str, np.ndarray]:
        """target -> float64 [n], in the order of the run's `sample_ids`; all targets from one pass
        over the samples.
        """
        V = self._directions(targets)
        ids, rows = np.asarray(self.run.sample_ids), []
        for part in batches(ids, self.options.batch):
            dots = StreamingDots(V, len(part))
            self._backward(dots, partial(self.run.losses, self.model, part))
            first, *rest = dots.by_parameter.values()
            rows.append(sum(rest, start=first))
        return dict(zip(targets, torch.cat(rows, 1).double().cpu().numpy()))

    # -- the curvature

    def _eigenbases(self, ids: np.ndarray) -> dict[str, tuple[Tensor, Tensor]]:
        """name -> Qa, Qb for the weights that are only used in matrix products."""
        sums: dict[str, list[Tensor]] = {}
        others: set[str] = set()
        for tape in self._tapes(ids):
            for origin, factor in tape.entries:
                name = origin.roots[0]
                if not self._has_factors(origin, factor):
                    others.update(origin.roots)
                    continue
                assert isinstance(factor, Outer)
                a, b = (wide(x).flatten(0, 1) for x in (factor.a, factor.b))
                for k, product in enumerate((a.T @ a, b.T @ b)):
                    found = sums.setdefault(name, [])
                    if len(found) == k:
                        found.append(product)
                    else:
                        found[k] += product
        return {
            name: (_eigenvectors(of_a / len(ids)), _eigenvectors(of_b / len(ids)))
            for name, (of_a, of_b) in sums.items()
            if name not in others
        }

    def _has_factors(self, origin, factor: Factor) -> bool:
        sides = (factor.a.shape[-1], factor.b.shape[-1]) if isinstance(factor, Outer) else ()
        return isinstance(origin, Parameter) and bool(sides) and max(sides) <= self.options.max_side

    def _eigenvalues(self, ids: np.ndarray, bases: dict[str, tuple[Tensor, Tensor]]) -> dict:
        """E of the squared gradient in each block's basis."""
        totals: dict[str, Tensor] = {}
        for tape in self._tapes(ids):
            rotated: dict[str, Tensor] = {}
            for origin, factor in tape.entries:
                name = origin.roots[0]
                if name in bases:
                    assert isinstance(factor, Outer)
                    Qa, Qb = bases[name]
                    g = torch.bmm((wide(factor.b) @ Qb).mT, wide(factor.a) @ Qa)  # [n, o, i]
                    rotated[name] = rotated[name] + g if name in rotated else g
            squares = {name: (g * g).sum(0) for name, g in rotated.items()}
            squares |= {
                name: q
                for name in self.parameters
                if name not in bases and (q := tape.squares(name)) is not None
            }
            for name, q in squares.items():
                totals[name] = totals[name] + q if name in totals else q
        blocks = {}
        for name, total in totals.items():
            mean = total / len(ids)
            blocks[name] = _Kronecker(*bases[name], mean) if name in bases else _Diagonal(mean)
        return blocks

    def _tapes(self, ids: np.ndarray) -> Iterator[Tape]:
        """The per-sample factors of the Fisher matrix's losses, batch after batch; the same labels
        each time.
        """
        for number, part in enumerate(batches(ids, self.options.batch)):
            tape = Tape(len(part))
            self._backward(tape, partial(self._fisher_losses, part, number))
            yield tape

    def _fisher_losses(self, ids: np.ndarray, number: int) -> Tensor:
        run, seed = self.run, self.options.seed * 2**20 + number
        if self.options.fisher == "empirical":
            return run.losses(self.model, ids)
        if isinstance(run, Sampled):
            return run.sampled_losses(self.model, ids, seed)
        if isinstance(run, Classified):
            logits = run.logits(self.model, ids)
            generator = torch.Generator(logits.device).manual_seed(seed)
            drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator).squeeze(
                1
            )
            return F.cross_entropy(logits, drawn, reduction="none")
        raise BaselineError(
            f"fisher='sampled' draws labels from the model, which a {type(run).__name__} cannot "
            "(it has neither sampled_losses nor logits). Next: fisher='empirical'"
        )

    # -- gradients

    def _directions(self, targets: Sequence[str]) -> dict[str, Tensor]:
        """name -> V [k, *shape]."""
        rows: dict[str, list[Tensor]] = {name: [] for name in self._blocks}
        for target in targets:
            loss = self.run.target_losses(self.model, target).mean()
            gradients = dict(zip(self.parameters, grad([loss], list(self.parameters.values()))))
            for name, block in self._blocks.items():
                g = gradients[name]
                g = torch.zeros_like(self.parameters[name]) if g is None else g
                rows[name].append(block.solve(wide(g), self.options.damping).to(g.dtype))
        return {name: torch.stack(found) for name, found in rows.items()}

    def _backward(self, recorder: Recorder, losses: Callable[[], Tensor]) -> None:
        watch = UseTracker(self.parameters, self._constants, recorder)
        with torch.autograd.set_multithreading_enabled(False), watch, torch.enable_grad():
            grad([losses().sum()], list(self.parameters.values()))


def _eigenvectors(matrix: Tensor) -> Tensor:
    return torch.linalg.eigh(matrix).eigenvectors


def _chosen(model: nn.Module, params: str) -> dict[str, Tensor]:
    trained = trained_parameters(model)
    chosen = {name: p for name, p in trained.items() if re.search(params, name)}
    if not chosen:
        raise BaselineError(
            f"params={params!r} matches no trained parameter; they are "
            f"{', '.join(list(trained)[:8])}, ..."
        )
    return chosen
