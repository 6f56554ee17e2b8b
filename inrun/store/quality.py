"""How far the values of a run can be trusted, by its own account; one function has the words.

R is ``sum |residual| / sum |U|`` over the steps whose ledger row is whole, U being what a step did
to the target beyond drift. Residuals of both signs do not cancel in it, as they do in the gap of
the sums. Held against enumerated Shapley values (docs/method.md), ranks become unreliable past 0.4,
values past 0.1. A single step that holds much of all ``|value|`` rules every sum over the run.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import pyarrow as pa

from inrun.store import queries

#: up to here nothing is said; up to there values are approximate
APPROXIMATE, UNEXPLAINED = 0.1, 0.4
#: the largest step's share of all |value|, in runs of so many steps and more
LARGEST_SHARE, ENOUGH_STEPS = 0.1, 50
#: how many of the steps with the largest residuals are named
NAMED_STEPS = 3

NOT_AUDITED = (
    "the run was not audited: nothing shows that a value depends on its own sample's data alone "
    "(audit=False, or no batch could be audited: its log says why)"
)


@dataclass
class Quality:
    """The account of one target and method, step by step: constant in size, so that a checkpoint
    holds it.

    Attributes:
        steps: that were valued. passed_over: that could not be, by the route.
        size: sum of ``|value|``. largest: (its part in one step, that step).
        residual, utility: sums of their sizes. worst: (``|residual|``, step) of those with most.
        frozen: steps valued by the slope frozen before them. excess: sum of the sizes of the share
            by which it overstated them. most: (size, excess, step) of the worst of these.
    """

    steps: int = 0
    passed_over: int = 0
    size: float = 0.0
    largest: tuple[float, int] = (0.0, 0)
    residual: float = 0.0
    utility: float = 0.0
    worst: list[tuple[float, int]] = field(default_factory=list)
    frozen: int = 0
    excess: float = 0.0
    most: tuple[float, float, int] = (0.0, 0.0, 0)

    def values(self, step: int, size: float) -> None:
        """A step was valued: size is its sum of ``|value|``."""
        self.steps += 1
        self.size += size
        self.largest = max(self.largest, (size, step))

    def account(self, step: int, residual: float | None, utility: float | None) -> None:
        """Its ledger row is whole; None: drift was not measured."""
        if residual is None or utility is None:
            return
        self.residual += abs(residual)
        self.utility += abs(utility)
        self.worst = heapq.nlargest(NAMED_STEPS, [*self.worst, (abs(residual), step)])

    def slope(self, step: int, excess: float) -> None:
        """It was valued by the frozen slope, which overstates the sum of its values by a share."""
        self.frozen += 1
        self.excess += abs(excess)
        self.most = max(self.most, (abs(excess), excess, step))

    @property
    def unexplained(self) -> float | None:
        """R; None where no step has a whole row, or none did anything."""
        return self.residual / self.utility if self.utility else None

    @property
    def largest_share(self) -> float:
        """The largest step's share of all ``|value|``."""
        return self.largest[0] / self.size if self.size else 0.0

    def said(self, kind: str = "") -> list[str]:
        """Sentences on what to doubt, and why; none where there is nothing to say.

        Args:
            kind: of the method, as far as it is known.
        """
        found = []
        R = self.unexplained
        if R is not None and R > UNEXPLAINED:
            shares = ", ".join(f"{s} ({r / self.residual:.0%})" for r, s in self.worst)
            found.append(
                f"the values of this method do not explain this run: {_advice(kind)} (sum "
                f"|residual| / sum |U| is {R:.2f}; most of it in steps {shares})"
            )
        elif R is not None and R > APPROXIMATE:
            found.append(
                f"values are approximate, ranks hold (sum |residual| / sum |U| is {R:.2f})"
            )
        if self.steps >= ENOUGH_STEPS and self.largest_share > LARGEST_SHARE:
            found.append(
                f"step {self.largest[1]} holds {self.largest_share:.0%} of all |value|: sums over "
                "the run are mostly its; compare within steps"
            )
        if self.frozen:
            found.append(
                f"slope frozen before the step in {self.frozen} of {self.steps} steps; misstates "
                f"their sums by {self.excess / self.frozen:.0%} on average, most at step "
                f"{self.most[2]} ({self.most[1]:+.0%})"
            )
        if self.passed_over:
            found.append(
                f"{self.passed_over} steps have no values: their slope was not known before the "
                "backward, and this route knows no other"
            )
        return found

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> Quality:
        """From what `state` gave, also after JSON."""
        known = {f.name: state[f.name] for f in fields(cls) if f.name in state}
        for name in ("largest", "most"):
            known[name] = tuple(known[name])
        known["worst"] = [tuple(pair) for pair in known["worst"]]
        return cls(**known)


def quality_of(
    sql: Callable[[str], pa.Table],
    target: str,
    method: str,
    kind: str,
    ledger: bool,
    steps: bool,
) -> Quality:
    """The account that a store gives.

    Args:
        sql: answers a query. target, method: checked names. kind: of the method, as far as it is
            known. ledger, steps: whether the store has these tables.
    """
    quality = Quality()
    for row in sql(queries.sizes(target, method)).to_pylist():
        quality.values(row["step"], row["size"])
    if ledger:
        for row in sql(queries.residuals(target, method)).to_pylist():
            utility = None if row["drift"] is None else row["drop"] - row["drift"]
            quality.account(row["step"], row["residual"], utility)
    if steps and kind == "first_order" and "frozen" in sql(queries.FIRST_STEP).column_names:
        for row in sql(queries.SLOPES).to_pylist():
            quality.passed_over += row["valued"] == 0
            if row["frozen"]:
                quality.slope(row["step"], row["excess"])
    return quality


def was_audited(sql: Callable[[str], pa.Table], asked: object, steps: bool) -> bool | None:
    """Whether some step of a store was audited; None: it does not say.

    Args:
        sql: answers a query. asked: what the run says of audits. steps: whether the store has this
            table.
    """
    if asked is None:
        return None
    known = steps and "audited" in sql(queries.FIRST_STEP).column_names
    return bool(asked and known and sql(queries.AUDITED)["audited"][0].as_py())


def _advice(kind: str) -> str:
    if kind != "path":
        return "use path"
    return "use more nodes, Path(nodes=3), or a smaller learning rate"
