"""Our own engine under test."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from inrun.attributor import Attributor, Intervals
from inrun.conformance.problem import Batch, Case, Observer, TrainingRun, size, state_of
from inrun.methods import Method


class Engine:
    """`inrun.Attributor`.

    Args:
        route: "tap"; "fused": the training then agrees within rounding, not to the bit; "replay":
            where the direction is known late, "tap" elsewhere.
        balance: check the balance on every k-th step (0: never, and no audit, so that only the
            numbers speak).
    """

    def __init__(self, route: str = "tap", balance: int = 1):
        self.name = "inrun" if route == "tap" else f"inrun, {route}"
        self.same_bits = route != "fused"
        self.route, self.balance = route, balance

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
        around = _Around(self.route, self.balance)
        case.run(around)
        return around.answer()

    def training(self, case: Case) -> Mapping[str, Tensor]:
        around = _Around(self.route, self.balance)
        run = case.run(around)
        around.attributor.close()
        return state_of(run)


class _Around(Observer):
    def __init__(self, route: str, balance: int):
        self.route, self.balance = route, balance
        self.found: dict[str, list[Tensor]] = {}

    def attach(self, run: TrainingRun) -> None:
        self.run, formula = run, run.case.formula
        self.quantities = run.case.quantities
        self.method = Method.from_config(formula.options())
        route = self.route if formula.route == "tap" else formula.route
        if route == "replay" and formula.known_before:
            route = "tap"  # there is nothing to replay
        self.attributor = Attributor(
            run.model,
            run.optimizer,
            run.closures(),
            self.method,
            route=route,
            intervals=Intervals(balance=self.balance),
            audit=self.balance > 0,
            per_token="tokens" in self.quantities,
        )
        self.runs_again = self.attributor.options.runs_again

    @contextmanager
    def micro(self, first: int, part: Batch, forward: Callable[[], Tensor]) -> Iterator[None]:
        with self.attributor.batch(
            range(first, first + size(part)), forward=forward if self.runs_again else None
        ):
            yield

    def after_step(self) -> None:
        result = self.attributor.last_step
        assert result is not None, "the step was valued"
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
