"""The directions of all methods and targets, one after the other on a leading axis."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor

from inrun.attributor.parameters import TrackedParameters
from inrun.methods import Method, Step, Target, directions
from inrun_kernels import memory

Key = tuple[str, str]  # (method, target)


class DirectionStack:
    """V [k, *shape] per parameter of one step; k counts the pairs of method and target.

    Those whose direction is known before the backward come first.

    Args:
        waiting: names of the methods whose direction in this step is known after it only.
    """

    def __init__(
        self,
        methods: Sequence[Method],
        waiting: Collection[str],
        targets: Mapping[str, Target],
        parameters: TrackedParameters,
    ):
        self.targets, self.parameters = targets, parameters
        self.known = [(m, t) for m in methods if m.name not in waiting for t in targets]
        self.late = [(m, t) for m in methods if m.name in waiting for t in targets]

    @property
    def keys(self) -> list[Key]:
        """(method, target) of each k."""
        return [(m.name, t) for m, t in [*self.known, *self.late]]

    def before(self, step: Step) -> dict[str, Tensor]:
        """The directions that are known before the backward; empty if there are none."""
        if not self.known:
            return {}
        with torch.no_grad():
            step.keep_slopes = len(self.known) > 1
            return self.stacked(self._made(step, self.known), len(self.known))

    def whole(self, step: Step, known: dict[str, Tensor]) -> dict[str, Tensor]:
        """All directions: those that were `known`, and those that follow from the step's
        gradient.
        """
        if not self.late:
            return known
        ahead = ({name: V[k] for name, V in known.items()} for k in range(len(self.known)))
        late = self._made(step, self.late)
        return self.stacked(chain(ahead, late), len(self.known) + len(self.late))

    def watch(self, step: Step) -> None:
        """How far the slopes that were known misstate the step."""
        for method, name in self.known:
            method.watch(step, self.targets[name])

    def _made(self, step: Step, pairs: Sequence[tuple[Method, str]]) -> Iterator[dict[str, Tensor]]:
        return (directions(method, step, self.targets[target]) for method, target in pairs)

    def stacked(self, found: Iterator[dict[str, Tensor]], count: int) -> dict[str, Tensor]:
        """`count` dicts {name: V} as one {name: V [count, *shape]}, made one after the other.

        A target that does not depend on a parameter has direction 0 there.
        """
        if count == 1:  # a view: a copy would be as large as the model
            return {name: V[None] for name, V in next(found).items()}
        stacked: dict[str, Tensor] = {}
        for k, directions_k in enumerate(found):
            for name, V in directions_k.items():
                if name not in stacked:
                    stacked[name] = memory.empty((count, *V.shape), V.dtype, V.device)
                    stacked[name][:k] = 0.0
                stacked[name][k] = V
            for name in stacked.keys() - directions_k.keys():
                stacked[name][k] = 0.0
        return {name: stacked[name] for name in self.parameters.by_name if name in stacked}


class LearningRates:
    """The learning rates when the known directions were made.

    They may have changed by the time of the step; every update is proportional to its own.
    """

    def __init__(self, parameters: TrackedParameters, known: int):
        self.parameters, self.known = parameters, known
        self.then = {name: parameters.learning_rate(name) for name in parameters.by_name}

    def ratio(self, name: str) -> float:
        """lr now / lr then, of a parameter.

        Raises:
            RuntimeError: it was 0 and is not.
        """
        then, now = self.then[name], self.parameters.learning_rate(name)
        if not self.known or then == now:
            return 1.0
        if then == 0.0:
            raise RuntimeError(
                "the learning rate was 0 when the step began and is not at optimizer.step(); set "
                "it before the first micro-batch"
            )
        return now / then

    def at_present(self, name: str, rows: Tensor) -> Tensor:
        """Rows [k, ...] of a parameter with those of the known directions at the present lr."""
        ratio = self.ratio(name)
        if ratio == 1.0:
            return rows
        ratios = torch.ones(len(rows), dtype=torch.float64)
        ratios[: self.known] = ratio
        return rows * ratios.to(rows).view(-1, *(1,) * (rows.dim() - 1))
