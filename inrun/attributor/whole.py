"""The route that needs no rules: one sample per micro-batch."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from inrun.attributor.kept import (
    Demand,
    device_memory,
    enough,
    keeps_something,
    kept_until_known,
)
from inrun.attributor.micro_batches import MicroBatch, MicroBatches, Record
from inrun.attributor.routes import Route, route
from inrun.config import require
from inrun.ghost import GradientBuffers, Tape, WholeDots, WholeRouteError, WholeTape
from inrun.methods import Method


@route
@dataclass(frozen=True)
class Whole(Route):
    """One sample per micro-batch: what its backward adds to `.grad` is its gradient.

    Needs no rule for any operation, so it values whatever torch can train. The trained weights are
    the same bits as those of a training with these micro-batches.

    >>> Whole(memory=2**30).kind
    'whole'
    """

    kind: str = field(default="whole", init=False)
    memory: int | None = None
    """bytes of samples' gradients that methods whose direction is known after the backward may
    keep; samples past it are run once more, by `batch(ids, forward=...)`. None: a quarter of the
    device's memory"""

    def __post_init__(self) -> None:
        require("route whole", enough(self.memory))

    def demands(self, methods: tuple[Method, ...], per_token: bool) -> list[Demand]:
        return [keeps_something("Whole", self.memory, methods)]

    def buffers(self, device: torch.device, late: bool) -> GradientBuffers:
        return kept_until_known(self.memory, device, late)

    def record(self, passes: MicroBatches, n: int) -> Record:
        if n != 1:
            raise WholeRouteError(
                f"route='whole' takes one sample per micro-batch, and {n} ids were given. Run each "
                "sample in a block of its own and step after all of them: for each i, `with "
                "attr.batch([ids[i]])` around loss(x[i : i + 1]) / n and its backward"
            )
        watched = passes.parameters.by_name
        if passes.late:
            return WholeTape(watched, passes.buffers)
        return WholeDots(watched, passes.known)

    def dots(self, passes: MicroBatches, V: Mapping[str, Tensor]) -> dict[str, Tensor]:
        watched = passes.parameters.by_name

        def of(micro: MicroBatch) -> Mapping[str, Tensor]:
            return (micro.record or passes.replayed(micro, WholeDots(watched, V))).dots(V)

        return passes.dots(V, of)

    def squares(self, passes: MicroBatches, name: str) -> Tensor | None:
        def tape_of(micro: MicroBatch) -> Tape:
            if isinstance(micro.record, Tape):
                return micro.record
            unbounded = GradientBuffers(device_memory(passes.parameters.device))
            return passes.replayed(micro, WholeTape(passes.parameters.by_name, unbounded))

        return passes.squares(name, tape_of)
