"""The ledger: ``drop = drift + sum of values + residual``, for every step, target and method.

`drop` is what the target's loss lost between this step's weights and the next's; `drift` what
momentum and weight decay would have done without any sample, ``L(w) - L(w - u(0))``, and what
penalties on weights did that were added to the loss (valued as if they were a sample); `residual`
what the method's approximation leaves. Over a run with every=1 the drops telescope to the total
drop of the loss. A row is complete only when the weights have moved, so it waits until the next
evaluation at the new ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch

from inrun.attributor.processes import Processes
from inrun.attributor.result import StepResult
from inrun.methods import Method, Step, Target
from inrun.store import Quality, ValueWriter


@dataclass
class Waiting:
    """A row whose loss after the step is not known yet; losses in the target's units."""

    step: int
    target: str
    method: str
    loss_before: float
    drift: float | None
    values: float


class Ledger:
    """Opens a row for each target and method of a step, and closes it at the next weights.

    Attributes:
        last: (method, target) -> the row that was completed last, by column.
        quality: (method, target) -> the account of all steps so far.
    """

    def __init__(
        self, targets: Mapping[str, Target], methods: Sequence[Method], processes: Processes
    ):
        self.targets, self.methods, self.processes = targets, methods, processes
        self.quality = {(m.name, target): Quality() for m in methods for target in targets}
        self.waiting: list[Waiting] = []
        self.last: dict[tuple[str, str], dict] = {}

    def open(
        self, result: StepResult, step: Step, methods: Sequence[Method], with_drift: bool
    ) -> None:
        """The rows of a step that is about to be taken; notes losses and drift in `result`."""
        nobody = step.without_samples() if with_drift else None
        for name, target in self.targets.items():
            result.loss_before[name] = target.loss()
            if with_drift:
                result.drift[name] = (
                    0.0 if nobody is None else target.loss() - target.loss(nobody, step.nobody)
                )
        for method in methods:
            for name in self.targets:
                drift = result.drift.get(name)
                if drift is not None:
                    drift += result.penalties.get((method.name, name), 0.0)
                if drift is not None and method.credit == "impulse":
                    drift -= self._of_later_steps(result.per_parameter[method.name, name], step)
                total = result.sums[method.name, name]
                loss = result.loss_before[name]
                self.waiting.append(Waiting(result.step, name, method.name, loss, drift, total))

    def _of_later_steps(self, parts: Mapping[str, torch.Tensor], step: Step) -> float:
        """What impulse credit gives to samples of later steps: it is taken from those steps' drift,
        here as a shift of this one's.
        """
        if not parts:
            return 0.0
        shifts = [(1.0 - 1.0 / step.updates[p].impulse) * v.sum() for p, v in parts.items()]
        return float(self.processes.total(reduce(torch.add, shifts)))

    def note(self, result: StepResult) -> None:
        """A step that was valued has been taken."""
        for (method, target), quality in self.quality.items():
            quality.values(result.step, result.sizes[method, target])
            if method in result.frozen:
                quality.slope(result.step, result.excess[method])

    def said(self) -> list[str]:
        """What is to be doubted of the values so far, a line each, with target and method."""
        kinds = {m.name: m.kind for m in self.methods}
        return [
            f"{target}, {method}: {line}"
            for (method, target), quality in self.quality.items()
            for line in quality.said(kinds[method])
        ]

    def figures(self) -> dict[str, float]:
        """The account in numbers, for a log: `value/unexplained/...` and `value/largest_step/...`
        by target and method.
        """
        found = {}
        for (method, target), quality in self.quality.items():
            found[f"value/largest_step/{target}/{method}"] = quality.largest_share
            if quality.unexplained is not None:
                found[f"value/unexplained/{target}/{method}"] = quality.unexplained
        return found

    def state(self) -> dict:
        """For a checkpoint."""
        quality = [
            {"method": method, "target": target, **account.state()}
            for (method, target), account in self.quality.items()
        ]
        return {"ledger": list(self.last.values()), "quality": quality}

    def load(self, state: Mapping) -> None:
        """`state`, from a checkpoint."""
        self.last = {(row["method"], row["target"]): dict(row) for row in state.get("ledger", ())}
        for row in state.get("quality", ()):
            if (row["method"], row["target"]) in self.quality:
                self.quality[row["method"], row["target"]] = Quality.of_state(row)

    def close(self, writer: ValueWriter | None) -> None:
        """Complete the waiting rows with the targets' losses at the present weights."""
        if not self.waiting:
            return
        losses = {name: target.loss() for name, target in self.targets.items()}
        for row in self.waiting:
            drop = row.loss_before - losses[row.target]
            residual = None if row.drift is None else drop - row.drift - row.values
            entry: dict[str, float | int | str | None] = {
                "step": row.step,
                "target": row.target,
                "method": row.method,
                "loss_before": row.loss_before,
                "loss_after": losses[row.target],
                "drop": drop,
                "drift": row.drift,
                "values": row.values,
                "residual": residual,
            }
            self.last[row.method, row.target] = entry
            utility = None if row.drift is None else drop - row.drift
            self.quality[row.method, row.target].account(row.step, residual, utility)
            if writer:
                writer.ledger(entry)
        self.waiting = []
