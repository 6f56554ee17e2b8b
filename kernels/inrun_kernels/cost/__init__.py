"""Which route for which shape: the fastest by a measured table, else by the cost model.

On a GPU run `python -m inrun_kernels.bench --calibrate` once: its rows, kept per device, are used
wherever the shape matches. Elsewhere `model` predicts each route's time.

    with inrun_kernels.cost.prefer(wgrad_dots="bmm"): ...         overrides both
    python -m inrun_kernels.cost --model gpt2 --device a100,h100  predicted overhead of each method
"""

import csv
import os
from functools import lru_cache
from pathlib import Path

import torch

from inrun_kernels.cost.model import (
    FUSED_FRACTION,
    MACHINES,
    ROUTES,
    Machine,
    Phase,
    Work,
    plain_seconds,
    seconds,
)

__all__ = [
    "BACKEND_ROUTES",
    "FUSED_FRACTION",
    "MACHINES",
    "ROUTES",
    "Machine",
    "Phase",
    "Work",
    "choose",
    "device_key",
    "forget_measurements",
    "machine_for",
    "measured_seconds",
    "plain_seconds",
    "prefer",
    "seconds",
    "table_path",
]

BACKEND_ROUTES = {
    "torch": {"wgrad_dots": ("split", "contract"), "outer_dots": ("split", "contract")},
    "triton": {"wgrad_dots": ("fused", "bmm"), "outer_dots": ("fused", "split")},
}
"""Routes a backend can take, by op. `split` on a GPU needs no Triton: one library product per
sample.
"""

_preferred: dict[str, str] = {}


class prefer:
    """Takes the named routes whatever the model says.

    `prefer(wgrad_dots="split")` from now on, `with prefer(...):` for a block. Raises ValueError for
    an op without routes or a route the op does not have.
    """

    def __init__(self, **routes: str):
        for op, route in routes.items():
            if op not in ROUTES or route not in ROUTES[op]:
                known = "; ".join(f"{name}: {', '.join(ways)}" for name, ways in ROUTES.items())
                raise ValueError(
                    f"inrun_kernels.cost.prefer({op}={route!r}): known routes are {known}"
                )
        self.previous = dict(_preferred)
        _preferred.update(routes)

    def __enter__(self) -> "prefer":
        return self

    def __exit__(self, *exception) -> None:
        _preferred.clear()
        _preferred.update(self.previous)


def choose(op: str, work: Work, backend: str, device: torch.device) -> str:
    """The route of one call: the preferred, else the fastest measured or predicted.

    Raises ValueError if a preferred route cannot run on this backend.
    """
    routes = BACKEND_ROUTES[backend][op]
    if op in _preferred:
        if _preferred[op] not in routes:
            raise ValueError(
                f'inrun_kernels.cost.prefer({op}="{_preferred[op]}"): the {backend} backend has '
                f"{', '.join(routes)}; "
                "change the preference or the backend (inrun_kernels.use)"
            )
        return _preferred[op]
    return _fastest(op, work, routes, machine_for(device), device_key(device))


@lru_cache(maxsize=4096)
def _fastest(op: str, work: Work, routes: tuple[str, ...], machine: str, device: str) -> str:
    measured = measured_seconds(device)
    if all((op, route, work) in measured for route in routes):
        times = [measured[op, route, work] for route in routes]
    else:
        times = [seconds(op, route, work, MACHINES[machine]) for route in routes]
    return routes[times.index(min(times))]


@lru_cache(maxsize=16)
def device_key(device: torch.device) -> str:
    """Name under which a device's measured table is kept: "cpu", or the GPU's name."""
    if device.type != "cuda":
        return device.type
    return torch.cuda.get_device_name(device).lower().replace(" ", "-").replace("/", "-")


@lru_cache(maxsize=16)
def machine_for(device: torch.device) -> str:
    """Key in `MACHINES` of the model of a device: on a GPU by compute capability, else "cpu"."""
    if device.type != "cuda":
        return "cpu"
    return "h100" if torch.cuda.get_device_capability(device) >= (9, 0) else "a100"


def table_path(device: str) -> Path:
    """Where `inrun_kernels.bench --calibrate` keeps a device's measured table."""
    root = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    return Path(root) / "inrun" / f"kernels-{device}.csv"


@lru_cache(maxsize=16)
def measured_seconds(device: str) -> dict[tuple[str, str, Work], float]:
    """Measured seconds by (op, route, work); empty where the device was never calibrated."""
    path = table_path(device)
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {_key(row): float(row["seconds"]) for row in csv.DictReader(file)}


def _key(row: dict[str, str]) -> tuple[str, str, Work]:
    n, t, i, o, k = (int(row[name]) for name in ("n", "t", "i", "o", "k"))
    return row["op"], row["route"], Work(n, t, i, o, k, getattr(torch, row["dtype"]))


def forget_measurements() -> None:
    """Read measured tables anew at the next choice; called after a calibration."""
    measured_seconds.cache_clear()
    _fastest.cache_clear()
