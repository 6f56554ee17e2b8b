"""What routes keep until a direction is known: how many bytes, and which methods ask for it."""

import logging
import os
from dataclasses import dataclass

import torch

from inrun.ghost import GradientBuffers
from inrun.methods import Method

log = logging.getLogger(__name__)

#: (what must hold, the message if it does not), for `inrun.config.require`
Demand = tuple[object, str]


def late_methods(methods: tuple[Method, ...]) -> list[str]:
    """Names of those whose direction may be known after the backward only."""
    return [m.name for m in methods if m.may_wait]


def enough(memory: int | None) -> Demand:
    """A demand: bytes that can be meant."""
    return memory is None or memory >= 0, f"memory={memory}: give bytes, 0 or more"


def keeps_something(name: str, memory: int | None, methods: tuple[Method, ...]) -> Demand:
    """A demand: a bound on memory bounds something."""
    return (
        memory is None or late_methods(methods),
        f"{name}(memory=...) bounds what is kept until a direction is known, and "
        f"{', '.join(m.name for m in methods)} keeps nothing: say route={name.lower()!r}",
    )


def kept_until_known(memory: int | None, device: torch.device, late: bool) -> GradientBuffers:
    """Memory for what is kept until a direction is known; None: a quarter of the device's."""
    if not late:
        return GradientBuffers(0)
    return GradientBuffers(device_memory(device) // 4 if memory is None else memory)


@dataclass
class Room:
    """Room for layer inputs and output gradients of a step's micro-batches.

    A micro-batch past it is run once more when the direction is known, where
    ``batch(ids, forward=...)`` says how; otherwise it is kept all the same.

    Attributes:
        budget: bytes. told: that it was not enough was said.
    """

    budget: int
    told: bool = False

    @classmethod
    def of(cls, memory: int | None, device: torch.device) -> "Room":
        """None: a quarter of the device's memory."""
        return cls(device_memory(device) // 4 if memory is None else memory)

    def spills(self, kept: int, runs_again: bool) -> bool:
        """Whether the micro-batch with which so many bytes would be kept is run once more."""
        if kept <= self.budget:
            return False
        if not self.told:
            self.told = True
            log.warning(
                "layer inputs and output gradients that values need take more than %.0f MiB: %s",
                self.budget / 2**20,
                "micro-batches past it are run once more, a forward and a backward each"
                if runs_again
                else "they are kept all the same. Give attr.batch(ids, forward=lambda: <the loss "
                "that is backpropagated>) and micro-batches past it are run once more instead",
            )
        return runs_again


def device_memory(device: torch.device) -> int:
    """Bytes that the device has.

    Not those that are free: what is kept decides the order of sums, and a run's bits must not
    depend on what else is running.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not every system tells
        return 8 << 30
