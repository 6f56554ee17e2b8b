"""The truth: loops of per-sample autograd, and the formulas of the methods written down a second
time.

Nothing here knows the engine: no rule, no ghost product, no tape, no update class. Every sample's
gradient comes from a backward of its own rows on a copy of the model; every update u(G) is written
from the optimizer's definition and held against the step that the optimizer then really takes;
directions follow the definition

    U(S) = L(w - u(0)) - L(w - u(sum_{i in S} g_i)),    value_i = < g_i , V >.

Axes: n train samples, t tokens.
"""

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from inrun.conformance.optimizers import RULES, Rule
from inrun.conformance.per_sample import Sample, sample_gradients
from inrun.conformance.problem import (
    Batch,
    Case,
    Observer,
    TrainingRun,
    Weights,
    added,
    state_of,
)
from inrun.conformance.slopes import directions
from inrun.shapley import exact

#: The update written down here against the one that the optimizer took, per element, relative to
#: the largest weight: a few roundings.
STEP_TOLERANCE = 1e-13


class OracleError(AssertionError):
    """The oracle disagrees with the training that it watches: a mistake in the suite, not in the
    engine.
    """


def truth(case: Case) -> dict[str, Tensor]:
    """What `Adapter.values` should return."""
    oracle = _Oracle()
    case.run(oracle)
    return oracle.answer()


def plain_training(case: Case) -> dict[str, Tensor]:
    """What `Adapter.training` should return: the state after training with nothing around it."""
    return state_of(case.run())


class _Oracle(Observer):
    def __init__(self):
        self.samples: list[Sample] = []
        self.found: dict[str, list[Tensor]] = {}
        self.ledger: dict[str, Tensor] = {}

    def attach(self, run: TrainingRun) -> None:
        self.run, self.case = run, run.case

    def micro(self, first: int, part: Batch, forward: Callable[[], Tensor]):
        if first == 0:
            self.samples = []
        self.samples += sample_gradients(self.run, part)
        return super().micro(first, part, forward)

    def before_step(self) -> None:
        model, optimizer = self.run.model, self.run.optimizer
        self.names = [
            name for name, p in model.named_parameters() if p.requires_grad and p.grad is not None
        ]
        parameters = dict(model.named_parameters())
        self.w = {name: p.detach().clone() for name, p in parameters.items()}
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        self.rules = {
            name: RULES[type(optimizer)](
                parameters[name], optimizer.state.get(parameters[name], {}), groups[id(p)]
            )
            for name, p in parameters.items()
            if name in self.names
        }
        total = {name: added(s.gradient[name] for s in self.samples) for name in self.names}
        norm = torch.sqrt(added((g * g).sum() for g in total.values()))
        self.c = 1.0 if self.case.clip is None else min(1.0, float(self.case.clip / (norm + 1e-6)))
        # the samples' sum must be the optimizer's gradient; from here on the latter, as an update
        # may hang on the sign of its rounding (Adam, where G is 0 but for that)
        self.G = {
            name: g.clone() for name in self.names if (g := parameters[name].grad) is not None
        }
        for name in self.names:
            self._agree(f"gradient of {name}", self.c * total[name], self.G[name])
        self.change = {name: rule(self.G[name]) for name, rule in self.rules.items()}
        self.idle = {
            name: rule(torch.zeros_like(self.G[name])) for name, rule in self.rules.items()
        }
        for target, batch in self.run.targets.items():
            if "values" in self.case.quantities or "ledger" in self.case.quantities:
                self._value(target, batch)

    def after_step(self) -> None:
        after = {name: p.detach() for name, p in self.run.model.named_parameters()}
        for name in self.names:
            self._agree(f"update of {name}", self.w[name] - self.change[name], after[name])
        if "ledger" in self.case.quantities:
            for target, batch in self.run.targets.items():
                before, now = self._loss(batch, self.w), self._loss(batch, after)
                drift = before - self._loss(batch, self._moved(self.idle))
                values = self.found[target][-1].sum()
                row = torch.stack([before - now, drift, values, before - now - drift - values])
                self.ledger[f"{target}:ledger"] = row[None]

    def answer(self) -> dict[str, Tensor]:
        return {**{key: torch.stack(steps) for key, steps in self.found.items()}, **self.ledger}

    # -- values

    def _value(self, target: str, batch: Batch) -> None:
        if self.case.truth == "game":
            values = self._game(batch)
        else:
            V = self._direction(batch)
            values = torch.stack([self._dot(s.gradient, V) for s in self.samples])
            if "tokens" in self.case.quantities:
                rows = torch.stack(
                    [torch.stack([self._dot(g, V) for g in s.rows]) for s in self.samples]
                )
                self.found.setdefault(f"{target}:tokens", []).append(rows)
        self.found.setdefault(target, []).append(values)
        if "drift" in self.case.quantities:
            drift = self._loss(batch, self.w) - self._loss(batch, self._moved(self.idle))
            self.found.setdefault(f"{target}:drift", []).append(drift)

    def _dot(self, g: Weights, V: Weights) -> Tensor:
        return self.c * sum(
            ((g[name] * V[name]).sum() for name in V), torch.zeros((), dtype=torch.float64)
        )

    def _direction(self, batch: Batch) -> Weights:
        formula = self.case.formula
        rules = (
            {name: _lr_only(rule) for name, rule in self.rules.items()}
            if formula.update == "sgd"
            else self.rules
        )
        V = {"first_order": self._first, "second_order": self._second, "path": self._path}[
            formula.kind
        ](batch, rules)
        if formula.credit == "impulse":
            V = {name: rules[name].impulse * v for name, v in V.items()}
        return V

    def _first(self, batch: Batch, rules: dict[str, Rule]) -> Weights:
        own = self.case.formula.update == "auto"
        gradient = self._gradient(batch, self._moved(self.idle) if own else self.w)
        if self.case.formula.known_before:
            return {name: rules[name].frozen_slope() * g for name, g in gradient.items()}
        return self._pulled_back(rules, gradient, 0.0, 1.0)

    def _second(self, batch: Batch, rules: dict[str, Rule]) -> Weights:
        """S^T [grad L - H (u(0) + u(G)) / 2]; for SGD that is the paper's ``eta grad L - eta^2/2 H
        G``.
        """
        way = {
            name: 0.5 * (rule(torch.zeros_like(self.G[name])) + rule(self.G[name]))
            for name, rule in rules.items()
        }
        model = self._model(self.w)
        parameters = {name: p for name, p in model.named_parameters() if name in self.names}
        with sdpa_kernel(SDPBackend.MATH):  # the fused one cannot be differentiated twice
            loss = self.run.problem.target_loss(model, batch)
        first = torch.autograd.grad(
            loss, list(parameters.values()), create_graph=True, allow_unused=True
        )
        used = {name: (p, g) for (name, p), g in zip(parameters.items(), first) if g is not None}
        if not used:  # the target depends on nothing that this batch moves
            return {}
        along = added((g * way[name]).sum() for name, (_, g) in used.items())
        second = torch.autograd.grad(along, [p for p, _ in used.values()])
        differences = {name: (g - h).detach() for (name, (_, g)), h in zip(used.items(), second)}
        return self._pulled_back(rules, differences, 0.0, 1.0)

    def _path(self, batch: Batch, rules: dict[str, Rule]) -> Weights:
        formula = self.case.formula
        if formula.quadrature == "midpoint":
            at, lengths = (
                (np.arange(formula.nodes) + 0.5) / formula.nodes,
                np.full(formula.nodes, 1 / formula.nodes),
            )
        else:
            at, lengths = np.polynomial.legendre.leggauss(formula.nodes)
            at, lengths = (at + 1) / 2, lengths / 2
        ends = np.concatenate([[0.0], np.cumsum(lengths)])
        total = {name: torch.zeros_like(g) for name, g in self.G.items()}
        moving = [(name, rule, self.G[name]) for name, rule in rules.items()]
        for k, node in enumerate(at):
            if formula.quadrature == "midpoint":  # of the way that the weights go
                lo, hi = float(ends[k]), float(ends[k + 1])
                way = {n: 0.5 * (rule(lo * G) + rule(hi * G)) for n, rule, G in moving}
            else:
                way = {n: rule(float(node) * G) for n, rule, G in moving}
            gradient = self._gradient(batch, self._moved(way))
            part = self._pulled_back(rules, gradient, float(ends[k]), float(ends[k + 1]))
            for name, v in part.items():
                total[name] += v
        return total

    def _pulled_back(
        self, rules: dict[str, Rule], gradient: Weights, lo: float, hi: float
    ) -> Weights:
        q = {
            name: self.c**2 * added(s.gradient[name] ** 2 for s in self.samples)
            for name in gradient
        }
        return directions(rules, self.G, q, len(self.samples), gradient, (lo, hi))

    def _game(self, batch: Batch) -> Tensor:
        """Shapley values by all coalitions, each one a step of a copy of the real optimizer."""
        n = len(self.samples)
        nobody = self._loss(batch, self._moved(self.idle))

        def utility(members: np.ndarray) -> float:
            model, optimizer = copy.deepcopy((self.run.model, self.run.optimizer))
            for name, p in model.named_parameters():
                if name in self.names:
                    p.grad = self.c * sum(
                        (s.gradient[name] for s, there in zip(self.samples, members) if there),
                        torch.zeros_like(p),
                    )
            optimizer.step()
            return float(
                nobody
                - self._loss(batch, {name: p.detach() for name, p in model.named_parameters()})
            )

        return torch.from_numpy(exact(utility, n))

    # -- the model, on a copy

    def _model(self, weights: Weights) -> nn.Module:
        model = copy.deepcopy(self.run.model)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(weights[name])
        return model

    def _moved(self, change: Weights) -> Weights:
        return {name: w - change[name] if name in change else w for name, w in self.w.items()}

    def _loss(self, batch: Batch, weights: Weights) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            return self.run.problem.target_loss(self._model(weights), batch).detach()

    def _gradient(self, batch: Batch, weights: Weights) -> Weights:
        model = self._model(weights)
        parameters = {name: p for name, p in model.named_parameters() if name in self.names}
        loss = self.run.problem.target_loss(model, batch)
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        return {name: g for name, g in zip(parameters, gradients) if g is not None}

    def _agree(self, what: str, mine: Tensor, real: Tensor) -> None:
        scale = max(float(real.abs().max()), float(mine.abs().max()))
        if float((mine - real).abs().max()) > STEP_TOLERANCE * max(scale, 1e-3) * 10:
            raise OracleError(
                f"case {self.case.name}, step {self.run.step}: the oracle's {what} is not "
                "the training's"
            )


def _lr_only(rule: Rule) -> Rule:
    return RULES[torch.optim.SGD](
        rule.w,
        {},
        {"lr": rule.lr, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False},
    )
