"""What methods with a slope that is known before the backward say of it, step by step."""

from collections.abc import Mapping
from typing import Any

import torch

from inrun.attributor.processes import Processes
from inrun.methods import Method, Step

#: weight of a step in the running mean
WEIGHT = 0.2
#: a step counts no more than this: where values nearly cancel, the share has no bound
LARGEST = 3.0


class Excess:
    """By how much the frozen slope overstates the sum of a step's values, ``<G, V> / <G, V with the
    secant> - 1``: the worst of a method's targets, and a running mean of its size.

    Attributes:
        mean: method -> running mean of the size, clamped at LARGEST.
    """

    def __init__(self, methods: tuple[Method, ...], processes: Processes):
        self.methods, self.processes = methods, processes
        self.mean: dict[str, float] = {}

    def waiting(self, step: Step) -> set[str]:
        """Names of the methods whose direction in the step that begins is known after the backward
        only.
        """
        return {m.name for m in self.methods if m.waits(step, self.mean.get(m.name))}

    def note(self, step: Step) -> dict[str, float]:
        """Method -> excess of the step that is valued."""
        found = step.watched
        if not found:
            return {}
        pairs = torch.stack([pair.cpu() for pair in found.values()])
        # the same in all processes to the last bit, since it decides how they go on
        frozen, taken = (self.processes.total(pairs) / self.processes.size).unbind(1)
        each = torch.where(taken != 0, frozen / torch.where(taken != 0, taken, 1.0) - 1.0, 0.0)
        worst: dict[str, float] = {}
        for (method, _), share in zip(found, each.tolist()):
            if abs(share) >= abs(worst.get(method, 0.0)):
                worst[method] = share
        for method, share in worst.items():
            size = min(abs(share), LARGEST)
            before = self.mean.get(method, size)
            self.mean[method] = before + WEIGHT * (size - before)
        return worst

    def state(self) -> dict[str, float]:
        """For a checkpoint."""
        return dict(self.mean)

    def load(self, state: Mapping[str, Any]) -> None:
        """`state`, from a checkpoint."""
        self.mean = {name: float(mean) for name, mean in state.items()}
