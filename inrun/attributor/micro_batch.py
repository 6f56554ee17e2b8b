"""One forward and backward of a step: what was recorded of it, and how it runs again."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from torch import Tensor

from inrun.attributor.parameters import RandomState
from inrun.ghost import CompiledProbes, StreamingDots, Tape
from inrun.rules import Factor, Origin

#: what takes the samples' parts while a backward runs
Record = StreamingDots | Tape | CompiledProbes
AnyRecord = TypeVar("AnyRecord", StreamingDots, Tape)


@dataclass
class MicroBatch:
    """One forward and backward.

    Attributes:
        ids: sample ids [n].
        record: what a route recorded; None if it runs the micro-batch again.
        forward: evaluates the loss again.
        random: state of the random generators before the forward, where there is a `forward`.
        rows: the place of each row's sample among the ids [r], where it was declared.
        penalties: what was added to the loss without data, with its gradients.
    """

    ids: np.ndarray
    record: Record | None
    forward: Callable[[], Tensor] | None
    random: RandomState | None
    rows: Tensor | None = None
    penalties: list[tuple[Origin, Factor]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def evaluate(self) -> Tensor:
        """The loss once more."""
        assert self.forward is not None, "routes that run again are given a forward"
        return self.forward()
