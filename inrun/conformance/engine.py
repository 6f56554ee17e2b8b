"""Our own engine under test."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from inrun.attributor import Attributor
from inrun.conformance.problem import Batch, Case, Observer, TrainingRun, size, state_of
from inrun.methods import Method


class Engine:
    """`inrun.Attributor`.

    Args:
        fused: take dots in the backward of linear layers itself; the training then agrees within
            rounding, not to the bit.
        replay: keep nothing of a micro-batch and run it once more where the direction is known
            late.
        check: check the books on every k-th step (0: never, so that only the numbers speak).
    """

    def __init__(self, fused: bool = False, replay: bool = False, check: int = 1):
        self.name = ", ".join(["inrun", *["fused"] * fused, *["replay"] * replay])
        self.same_bits = not fused
        self.options = {"fused": fused, "replay": replay, "check": check}

    def supports(self, case: Case) -> str | None:
        formula = case.formula
        no_tape = formula.route == "forward"
        late = not formula.known_before and formula.update == "auto"
        if (
            no_tape
            and late
            and any("betas" in group for group in TrainingRun(case).optimizer.param_groups)
        ):
            return "no rules, no per-sample squares for elements without state"
        return None

    def values(self, case: Case) -> Mapping[str, Tensor]:
        around = _Around(self.options)
        case.run(around)
        return around.answer()

    def training(self, case: Case) -> Mapping[str, Tensor]:
        around = _Around(self.options)
        run = case.run(around)
        around.attributor.close()
        return state_of(run)


class _Around(Observer):
    def __init__(self, options: Mapping):
        self.options = options
        self.found: dict[str, list[Tensor]] = {}

    def attach(self, run: TrainingRun) -> None:
        self.run, formula = run, run.case.formula
        self.quantities = run.case.quantities
        self.replay = (
            formula.route == "forward" or "tokens" in self.quantities or self.options["replay"]
        )
        self.method = Method(
            formula.kind,
            formula.update,
            formula.state,
            formula.nodes,
            formula.quadrature,
            formula.credit,
        )
        self.attributor = Attributor(
            run.model,
            run.optimizer,
            run.closures(),
            self.method,
            route=formula.route,
            per_token="tokens" in self.quantities,
            **self.options,
        )

    @contextmanager
    def micro(self, first: int, part: Batch, forward: Callable[[], Tensor]) -> Iterator[None]:
        with self.attributor.batch(
            range(first, first + size(part)), forward=forward if self.replay else None
        ):
            yield

    def after_step(self) -> None:
        result = self.attributor.last_step
        for target in self.run.targets:
            key = (self.method.name, target)
            if "values" in self.quantities:
                self._keep(target, result.values[key])
            if "tokens" in self.quantities:
                self._keep(f"{target}:tokens", torch.cat(result.tokens[key]))
            if "drift" in self.quantities:
                self._keep(
                    f"{target}:drift", torch.tensor(result.drift[target], dtype=torch.float64)
                )

    def answer(self) -> dict[str, Tensor]:
        answer = {key: torch.stack(steps) for key, steps in self.found.items()}
        if "ledger" in self.quantities:
            self.attributor.flush()
            for target in self.run.targets:
                row = self.attributor.ledger.last[self.method.name, target]
                numbers = [row[column] for column in ("drop", "drift", "values", "residual")]
                answer[f"{target}:ledger"] = torch.tensor([numbers], dtype=torch.float64)
        self.attributor.close()
        return answer

    def _keep(self, key: str, value: Tensor) -> None:
        self.found.setdefault(key, []).append(value)
