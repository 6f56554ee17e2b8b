"""Curation while the run goes on: chunks that lowered no validation loss are left out.

At every decision step (`start`, then each `every` steps) the values measured so far decide which
chunks are sampled until the next decision: a chunk whose mean value is negative is left out, one
that was never used stays. A chunk that is left out is not measured again and so stays out. What
noise in few measurements drops by mistake is lost, so `start` should give each chunk a few of them.
Decisions are functions of the store up to that step, so a killed and resumed run takes the same
ones.
"""

from dataclasses import dataclass

import numpy as np

from inrun.config import ConfigError
from inrun.store import ValueStore
from inrun.train.selection import ChunkSelection


@dataclass(frozen=True)
class OnlineConfig:
    """When values decide, and whose."""

    start: int = 0
    """The first step whose batch is sampled by values; 0: never."""
    every: int = 0
    """Steps between decisions, 0: decide once."""
    since: int = 0
    """Values before this step do not count: every loss falls early, whatever is read."""
    target: str = ""
    """Whose values; "" where the run has only one target."""
    method: str = ""
    """By which method; "" where the run has only one."""
    unit: str = "step"
    """Of `ValueStore.means`."""

    def __post_init__(self):
        if min(self.start, self.every, self.since) < 0 or (self.start and self.since >= self.start):
            raise ConfigError(
                "online: start, every and since must not be negative, and since must be "
                "before start"
            )
        if self.unit not in ("loss", "step"):
            raise ConfigError(f"online.unit={self.unit!r}: choose loss or step")

    def decision(self, step: int) -> int | None:
        """The step whose decision rules the batch of `step`; None: nothing is left out."""
        if not self.start or step < self.start:
            return None
        return self.start + ((step - self.start) // self.every * self.every if self.every else 0)


def decide(
    config: OnlineConfig, step: int, store: ValueStore, everything: ChunkSelection
) -> ChunkSelection:
    """The chunks to sample from after the decision at `step`.

    The values of steps `since` to `step - 1` decide. Raises ConfigError if nothing would be left.
    """
    values = store.means(
        config.target or None,
        config.method or None,
        first=config.since,
        before=step,
        unit=config.unit,
    )
    dropped = values["sample_id"].to_numpy()[values["value"].to_numpy() < 0]
    kept = ~np.isin(everything.ids, dropped)
    if not kept.any():
        raise ConfigError(
            f"online: by step {step} every chunk has a negative value; start later, or look "
            "at the target"
        )
    weights = None if everything.weights is None else everything.weights[kept]
    return ChunkSelection(everything.ids[kept], weights)
