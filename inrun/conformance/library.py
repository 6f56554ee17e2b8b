"""What the adapters of libraries share: a training that is watched, per-sample gradients that are
asked for, and the paper's directions put together here.
"""

import copy
import importlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from inrun.conformance.problem import Batch, Case, Observer, TrainingRun, Weights, added, state_of


class NotInstalledError(ImportError):
    """The library that an adapter is for is not there."""


def imported(name: str):
    """The library, or an error that says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise NotInstalledError(
            f"{error}; install it with `pip install {name.split('.')[0]}`"
        ) from error


class Library:
    """What all adapters of libraries share: the cases that make sense, and the two runs."""

    name: str
    same_bits = False

    def supports(self, case: Case) -> str | None:
        formula = case.formula
        if set(case.quantities) - {"values"}:
            return f"asks for {', '.join(sorted(set(case.quantities) - {'values'}))}"
        if formula.credit != "immediate":
            return "no credit for later steps"
        groups = TrainingRun(case).optimizer.param_groups
        plain = all(
            group.get("momentum") == 0 and group["weight_decay"] == 0 and "betas" not in group
            for group in groups
        )
        if case.quantities and not plain and formula.update != "sgd":
            return "knows no update but lr * gradient"
        if case.problem.together and case.quantities:
            return "what the micro-batch decides (masks, experts) cannot be given to it"
        return None

    def values(self, case: Case) -> Mapping[str, Tensor]:
        observer = self.observer()
        case.run(observer)
        observer.detach()
        return {target: torch.stack(steps) for target, steps in observer.found.items()}

    def training(self, case: Case) -> Mapping[str, Tensor]:
        observer = self.observer()
        run = case.run(observer)
        observer.detach()
        return state_of(run)

    def observer(self) -> "LibraryValues":
        raise NotImplementedError


class LibraryValues(Observer):
    """Per-sample gradients from a library; directions and dots from here."""

    def __init__(self):
        self.found: dict[str, list[Tensor]] = {}
        self.parts: list[Weights] = []

    def attach(self, run: TrainingRun) -> None:
        self.run, self.bare = (
            run,
            copy.deepcopy(run.model),
        )  # targets are evaluated on the copy, whatever the library does to the model
        self.parameters = {name: p for name, p in run.model.named_parameters() if p.requires_grad}

    def detach(self) -> None:
        """Give the model back."""

    def before_step(self) -> None:
        g = {name: torch.cat([part[name] for part in self.parts]) for name in self.parts[0]}
        self.parts = []
        norm = torch.sqrt(added((x.sum(0) ** 2).sum() for x in g.values()))
        c = (
            1.0
            if self.run.case.clip is None
            else min(1.0, float(self.run.case.clip / (norm + 1e-6)))
        )
        if "values" in self.run.case.quantities:
            for target, batch in self.run.targets.items():
                V = self._direction(batch, {name: c * x.sum(0) for name, x in g.items()})
                dots = added((x * V[name]).reshape(len(x), -1).sum(1) for name, x in g.items())
                self.found.setdefault(target, []).append(c * dots)

    def _direction(self, batch: Batch, G: Weights) -> Weights:
        formula = self.run.case.formula
        groups = {
            id(p): group["lr"] for group in self.run.optimizer.param_groups for p in group["params"]
        }
        lr = {name: groups[id(p)] for name, p in self.parameters.items()}
        if formula.kind == "first_order":
            return {name: lr[name] * x for name, x in self.gradient(batch, {}).items()}
        if formula.kind == "path":
            V = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
            for node in range(formula.nodes):
                at = {name: (node + 0.5) / formula.nodes * lr[name] * x for name, x in G.items()}
                for name, x in self.gradient(batch, at).items():
                    V[name] += lr[name] / formula.nodes * x
            return V

        step = {name: 0.5 * lr[name] * G[name] for name in self.parameters}
        w = self.weights({})
        with sdpa_kernel(SDPBackend.MATH):  # the fused one cannot be differentiated twice
            loss = self.loss(batch, w)
        first = torch.autograd.grad(loss, list(w.values()), create_graph=True)
        second = torch.autograd.grad(
            sum((g * step[name]).sum() for name, g in zip(w, first)), list(w.values())
        )
        return {name: lr[name] * (g - h).detach() for name, g, h in zip(w, first, second)}

    def weights(self, change: Weights) -> Weights:
        return {
            name: (p.detach() - change.get(name, 0.0)).requires_grad_()
            for name, p in self.parameters.items()
        }

    def loss(self, batch: Batch, weights: Weights) -> Tensor:
        return self.run.problem.target_loss(Functional(self.bare, weights), batch)

    def gradient(self, batch: Batch, change: Weights) -> Weights:
        w = self.weights(change)
        return dict(zip(w, torch.autograd.grad(self.loss(batch, w), list(w.values()))))


class Functional(nn.Module):
    """A model that is called with given weights, and with copies of its buffers."""

    def __init__(self, model: nn.Module, weights: Weights):
        super().__init__()
        self.model, self.weights = model, weights

    def forward(self, *args) -> Tensor:
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        return torch.func.functional_call(self.model, ({**self.weights, **buffers},), args)
