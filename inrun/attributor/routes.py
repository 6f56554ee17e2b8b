"""The ways in which the samples' parts of a gradient are found; one choice in one argument.

A route is a frozen dataclass: its options, what it refuses, what it records of a micro-batch, and
how it answers with dot products. `@route` adds one.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from inrun.attributor.kept import (
    Demand,
    Room,
    enough,
    keeps_something,
    kept_until_known,
    late_methods,
)
from inrun.attributor.micro_batches import MicroBatch, MicroBatches, Record
from inrun.config import build_kind, require
from inrun.ghost import CompiledProbes, GradientBuffers, StreamingDots, Tape
from inrun.ghost.audit import Dots
from inrun.ghost.audit_data import RowOwners
from inrun.ghost.audit_dots import by_probes, by_rules, by_tokens
from inrun.ghost.tape import Use
from inrun.methods import Method
from inrun.registry import Registry

ROUTES: Registry[str, type["Route"]] = Registry("route")


def route(cls: type["Route"]) -> type["Route"]:
    """Decorator: the route can be chosen by its `kind`."""
    return ROUTES.add(cls().kind, cls)


@dataclass(frozen=True)
class Route:
    """How the samples' parts of the gradient are found."""

    kind: str = field(default="", init=False)

    #: whether `batch(ids, forward=...)` must be able to run the micro-batch again
    needs_forward: ClassVar[bool] = False
    #: whether targets' gradients may be summed in another order than torch's own, which is faster
    fused_targets: ClassVar[bool] = False
    #: whether it serves directions that are known after the backward only; where it does not, steps
    #: whose direction must wait have no values
    late_directions: ClassVar[bool] = True
    #: whether dots come parameter by parameter; otherwise values come from tokens
    by_parameter: ClassVar[bool] = True
    #: whether it takes rows whose samples are declared, `batch(ids, rows=...)`
    takes_rows: ClassVar[bool] = True
    #: whether it works where several processes train together
    many_processes: ClassVar[bool] = True

    def demands(self, methods: tuple[Method, ...], per_token: bool) -> list[Demand]:
        """What must hold (`inrun.config.require`): what this route can do, and would change."""
        return []

    def buffers(self, device: torch.device, late: bool) -> GradientBuffers:
        """Memory for per-sample weight gradients; `late`: a direction is known after the backward
        only.
        """
        return GradientBuffers(0)

    def record(self, passes: MicroBatches, n: int) -> Record | None:
        """What takes the parts of the next micro-batch, of n samples, while it runs; None: nothing
        does.
        """
        return None

    def dots(self, passes: MicroBatches, V: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``<g_i, V_k>``: name -> V [k, *shape]  to  name -> [k, n] in float64.

        A micro-batch of which nothing is kept is run once more.
        """

        def of(micro: MicroBatch) -> Mapping[str, Tensor]:
            return (micro.record or passes.replayed(micro, StreamingDots(V, len(micro)))).dots(V)

        return passes.dots(V, of)

    def squares(self, passes: MicroBatches, name: str) -> Tensor | None:
        """``sum_i g_i^2`` elementwise of a parameter; None if it was not used."""

        def tape_of(micro: MicroBatch) -> Tape:
            if isinstance(micro.record, Tape):
                return micro.record
            return passes.replayed(micro, Tape(len(micro)))

        return passes.squares(name, tape_of)

    def room(self, device: torch.device) -> Room:
        """Room for layer inputs and output gradients that are kept until a direction is known."""
        return Room.of(None, device)

    def audit_dots(self, owners: RowOwners, uses: set[Use]) -> Dots:
        """How an audit takes the samples' parts; `uses` gets what it did with parameters."""
        return by_rules(owners, False, uses)

    def seen_by_modes(self) -> AbstractContextManager:
        """A context in which every operation of the model can be seen."""
        return nullcontext()

    #: whether `squares` can be asked
    gives_squares: ClassVar[bool] = True

    @classmethod
    def from_config(cls, value: Any, where: str = "route") -> "Route":
        """A route from its name, from a mapping with `kind` and options, or from itself."""
        return build_kind(Route, ROUTES, value, where)


@route
@dataclass(frozen=True)
class Tap(Route):
    """A rule per operation beside torch's own backward: the trained weights are the same bits.

    >>> Tap().kind
    'tap'
    """

    kind: str = field(default="tap", init=False)
    memory: int | None = None
    """bytes of layer inputs and output gradients that methods whose direction is known after the
    backward may keep; micro-batches past it are run once more, by `batch(ids, forward=...)`, and
    kept all the same without it. None: a quarter of the device's memory"""

    def __post_init__(self) -> None:
        require("route tap", enough(self.memory))

    def demands(self, methods: tuple[Method, ...], per_token: bool) -> list[Demand]:
        return [keeps_something("Tap", self.memory, methods)]

    def room(self, device: torch.device) -> Room:
        return Room.of(self.memory, device)

    def record(self, passes: MicroBatches, n: int) -> Record:
        return Tape(n) if passes.late else StreamingDots(passes.known, n)


@route
@dataclass(frozen=True)
class Fused(Route):
    """Linear layers and the language-model head take dots in their own backward: faster.

    The weight gradient is then summed sample by sample, so that the trained weights differ from
    unattributed training by rounding.

    >>> Fused(memory=2**30).kind
    'fused'
    """

    kind: str = field(default="fused", init=False)
    memory: int | None = None
    """bytes of per-sample weight gradients that methods whose direction is known after the backward
    may keep; past it they keep layer inputs and output gradients, for which there is a quarter of
    the device's memory (as with `Tap`), and pay one more product. None: a quarter of it too"""

    fused_targets: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require("route fused", enough(self.memory))

    def demands(self, methods: tuple[Method, ...], per_token: bool) -> list[Demand]:
        return [keeps_something("Fused", self.memory, methods)]

    def buffers(self, device: torch.device, late: bool) -> GradientBuffers:
        return kept_until_known(self.memory, device, late)

    def record(self, passes: MicroBatches, n: int) -> Record:
        if passes.late:
            return Tape(n, True, passes.buffers)
        return StreamingDots(passes.known, n, True)

    def audit_dots(self, owners: RowOwners, uses: set[Use]) -> Dots:
        return by_rules(owners, True, uses)


@route
@dataclass(frozen=True)
class Replay(Route):
    """Methods whose direction is known after the backward run the batch once more and keep nothing.

    No memory, a forward and a backward more, any number of micro-batches; needs ``batch(ids,
    forward=...)``. The trained weights are the same bits.

    >>> Replay().needs_forward
    True
    """

    kind: str = field(default="replay", init=False)

    needs_forward: ClassVar[bool] = True
    fused_targets: ClassVar[bool] = True

    def demands(self, methods: tuple[Method, ...], per_token: bool) -> list[Demand]:
        return [
            (
                late_methods(methods),
                "route='replay' runs a batch again for directions that are known after the "
                f"backward, and {', '.join(m.name for m in methods)} is known before it: say "
                "route='tap' or route='fused', which keep nothing either",
            )
        ]

    def record(self, passes: MicroBatches, n: int) -> Record | None:
        return None if passes.late else StreamingDots(passes.known, n)


@route
@dataclass(frozen=True)
class Forward(Route):
    """One forward-mode pass per direction: any architecture, no rule for any operation.

    Needs ``batch(ids, forward=...)``.

    >>> Forward().by_parameter
    False
    """

    kind: str = field(default="forward", init=False)

    needs_forward: ClassVar[bool] = True
    by_parameter: ClassVar[bool] = False
    gives_squares: ClassVar[bool] = False

    def audit_dots(self, owners: RowOwners, uses: set[Use]) -> Dots:
        return by_tokens(owners)


@route
@dataclass(frozen=True)
class Compiled(Route):
    """For models under torch.compile: linear, embedding and norm layers and this project's head.

    Directions known before the backward only, in one process; the weight gradient is summed sample
    by sample.

    >>> Compiled().many_processes
    False
    """

    kind: str = field(default="compiled", init=False)

    takes_rows: ClassVar[bool] = False
    many_processes: ClassVar[bool] = False
    late_directions: ClassVar[bool] = False
    gives_squares: ClassVar[bool] = False

    def demands(self, methods: tuple[Method, ...], per_token: bool) -> list[Demand]:
        late = [m.name for m in methods if not m.known_before]
        return [
            (
                not late,
                "route='compiled' needs directions that are known before the backward, and "
                f"{', '.join(late)} is not; use first_order with state='previous' or update='sgd', "
                "or train uncompiled with route='tap'",
            )
        ]

    def record(self, passes: MicroBatches, n: int) -> Record:
        return CompiledProbes(passes.parameters.by_name, passes.known, n)

    def audit_dots(self, owners: RowOwners, uses: set[Use]) -> Dots:
        return by_probes(owners.n)

    def seen_by_modes(self) -> AbstractContextManager:
        return torch.compiler.set_stance("force_eager")
