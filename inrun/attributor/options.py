"""The options of an `Attributor`: one frozen dataclass for each thing that can be chosen.

What is said twice, or cannot be meant, is refused here, by name, with what to say instead.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from inrun.attributor.processes import Processes
from inrun.attributor.recording import Recording
from inrun.attributor.routes import Route, Tap
from inrun.config import build, require
from inrun.methods import Method
from inrun.methods import Path as AlongPath


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """How often what is slow is done, in steps that are valued.

    >>> Intervals(balance=100).ledger
    1
    """

    refresh: int = 1
    """evaluate the targets' gradients at every k-th valued step and use them for the steps between;
    the optimizer's slopes are always those of the step"""
    ledger: int = 1
    "evaluate drift at every k-th valued step, a forward pass of each target; 0: no ledger at all"
    balance: int = 1
    "check at every k-th valued step that the samples' parts add up to the gradient; 0: never"

    def __post_init__(self) -> None:
        require(
            "intervals",
            (self.refresh >= 1, f"refresh={self.refresh}: choose 1 or more"),
            (self.ledger >= 0, f"ledger={self.ledger}: choose 1 or more, or 0 for never"),
            (self.balance >= 0, f"balance={self.balance}: choose 1 or more, or 0 for never"),
        )


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The test that a sample's value depends on its own data alone, made on the first micro-batch
    and on the first one that uses parameters in a new way.

    >>> Audit(groups=4).groups
    4
    """

    groups: int | None = None
    """tell samples apart in so many groups, with fewer passes: 4 passes for 6 groups, 5 for 10, 8
    for 64; None: each sample from every other"""

    def __post_init__(self) -> None:
        enough = self.groups is None or self.groups >= 2
        require("audit", (enough, f"groups={self.groups}: choose 2 or more, or audit=False"))

    @classmethod
    def from_config(cls, value: Any, where: str = "audit") -> "Audit | None":
        """True: every sample; False or None: no audit; or a mapping, or an `Audit`."""
        if value is True:
            return cls()
        return None if value is False or value is None else build(cls, value, where)


@dataclass(frozen=True, kw_only=True)
class Valuation:
    """What is valued and how; what a YAML file can say of it.

    Raises:
        ConfigError: an option has no such value, or two of them contradict each other.
    """

    method: tuple[Method, ...] = (AlongPath(),)
    "ways to value samples, by name or as objects; the first one is what `Attributor.last` shows"
    route: Route = field(default_factory=Tap)
    "how samples' parts of the gradient are found: tap, fused, replay, forward, compiled or whole"
    params: str | None = None
    "regular expression; only parameters whose name it finds are valued"
    every: int = 1
    "value every k-th step only"
    intervals: Intervals = field(default_factory=Intervals)
    "how often targets' gradients are taken anew, drift is measured, the balance is checked"
    audit: Audit | None = field(default_factory=Audit)
    "test on the first batch that a value depends on its sample's data alone; False: do not"
    per_token: bool = False
    "also value every predicted token; needs `batch(ids, forward=...)`"

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", methods_of(self.method))
        object.__setattr__(self, "route", Route.from_config(self.route))
        object.__setattr__(self, "audit", Audit.from_config(self.audit))
        names = [m.name for m in self.method]
        refresh = self.intervals.refresh
        require(
            "attribution",
            (
                len(set(names)) == len(names),
                f"methods need distinct names, got {names}; give name=... to one of them",
            ),
            (self.every >= 1, f"every={self.every}: choose 1 or more"),
            (_is_regex(self.params), f"params={self.params!r} is no regular expression"),
            *(
                (
                    refresh == 1 or not m.needs_present_target,
                    f"intervals: refresh={refresh} uses target gradients of earlier steps, and "
                    f"method {m.name!r} cannot: {m.needs_present_target}. Say refresh=1, or choose "
                    "another method",
                )
                for m in self.method
            ),
        )
        if self.method:
            require("attribution", *self.route.demands(self.method, self.per_token))

    @property
    def runs_again(self) -> bool:
        """Whether a micro-batch is evaluated a second time, so that `forward=` is needed."""
        return self.per_token or self.route.needs_forward

    def arguments(self) -> dict[str, Any]:
        """The same as arguments of `Attributor`, by name."""
        return {f.name: getattr(self, f.name) for f in fields(Valuation)}

    def valued(self, step: int) -> bool:
        """Whether this step is."""
        return step % self.every == 0

    def is_due(self, interval: int, step: int) -> bool:
        """Whether what is done at every `interval`-th valued step (0: never) is done at this
        one.
        """
        return interval > 0 and step // self.every % interval == 0


@dataclass(frozen=True, kw_only=True)
class Options(Valuation):
    """All that an `Attributor` can be told beside its model, optimizer and targets."""

    store: Recording | None = None
    "where the values go: a folder, or a `Recording`; None keeps the last step's only"
    processes: Processes | None = None
    "the processes that train together, where the model does not tell"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.store, (str, Path)):
            object.__setattr__(self, "store", Recording(self.store))
        require(
            "attribution",
            (self.method, "method is empty: give at least one, such as 'first_order' or 'path'"),
            (
                isinstance(self.store, (Recording, type(None))),
                f"store={self.store!r}: give a folder, or Recording(folder, ...)",
            ),
            (
                isinstance(self.processes, (Processes, type(None))),
                f"processes={self.processes!r}: give Processes(group), or leave it out where the "
                "model is a DistributedDataParallel",
            ),
        )

    def about(self, targets: list[str]) -> dict[str, Any]:
        """What the store says of them; a run that is resumed must agree."""
        said = {m.name: {"kind": m.kind, **m.said()} for m in self.method}
        settings = {"methods": said, "every": self.every, "refresh": self.intervals.refresh}
        asked = self.audit is not None and (self.audit.groups or True)
        about = {"targets": targets, "methods": list(said)}
        return {**about, "attribution": settings, "audit": asked}


def methods_of(given: Any) -> tuple[Method, ...]:
    """Methods from one or several, each a name, a mapping, or an object."""
    several = isinstance(given, Sequence) and not isinstance(given, str)
    return tuple(Method.from_config(m) for m in (given if several else [given]))


def _is_regex(pattern: str | None) -> bool:
    try:
        re.compile(pattern or "")
    except re.error:
        return False
    return True
