"""Which route for which shape: flops and bytes of every route in one place, and a measured table
that beats them.

A route's predicted time is the sum of its phases, each max(flops / rate, bytes / bandwidth) plus
its calls' overhead: phases do not overlap, and within a phase arithmetic and traffic do. CPU rates
were measured (kernels/bench.csv); GPU rates are assumed sustained fractions of data sheets: nothing
here about a GPU's time has been measured. On a GPU run `python -m inrun_kernels.bench --calibrate`
once: its rows, kept per device, are used wherever the shape matches.

    with inrun_kernels.cost.prefer(wgrad_dots="bmm"): ...         overrides both
    python -m inrun_kernels.cost --model gpt2 --device a100,h100  prints the predicted overhead of each method
"""

import csv
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

FUSED_FRACTION = {2: 0.8, 4: 0.5}
"""Rate of a Triton product as a fraction of the vendor library's, by bytes of the dtype: an
assumption, and the one that the GPU predictions depend on most. float32 products without tf32 use
no tensor cores in either."""


@dataclass(frozen=True)
class Machine:
    """Sustained rates: flop/s of a matrix product by dtype, byte/s of streaming, seconds of
    overhead of a call.
    """

    name: str
    flops: dict[torch.dtype, float]
    bandwidth: float
    call: float


def _half(rate: float) -> dict[torch.dtype, float]:
    return {torch.float16: rate, torch.bfloat16: rate}


# cpu: one core with AVX-512 and bf16 dot products; streaming is that of operands that stay in L2.
# More cores scale rate and bandwidth alike, so that the choice does not depend on their number.
MACHINES = {
    "cpu": Machine(
        "cpu",
        {torch.float64: 49e9, torch.float32: 98e9, torch.float16: 98e9, torch.bfloat16: 410e9},
        bandwidth=78e9,
        call=4e-6,
    ),
    "a100": Machine(
        "a100",
        {torch.float64: 15e12, torch.float32: 15e12} | _half(250e12),
        bandwidth=1.5e12,
        call=4e-6,
    ),
    "h100": Machine(
        "h100",
        {torch.float64: 45e12, torch.float32: 45e12} | _half(600e12),
        bandwidth=2.8e12,
        call=4e-6,
    ),
}


@dataclass(frozen=True)
class Work:
    """One layer's batch: n samples of t tokens (the mean length where they differ), i inputs, o
    outputs, k directions.
    """

    n: int
    t: int
    i: int
    o: int
    k: int
    dtype: torch.dtype

    @property
    def product(self) -> float:
        """Flops of one product of weight-gradient size."""
        return 2.0 * self.n * self.t * self.i * self.o

    @property
    def weight(self) -> float:
        """Elements of the weight."""
        return float(self.i * self.o)


@dataclass(frozen=True)
class Phase:
    """A stretch of work: flops in a dtype at a fraction of the machine's rate, bytes moved, calls
    made.
    """

    flops: float = 0.0
    bytes: float = 0.0
    calls: int = 1
    dtype: torch.dtype = torch.float32
    fraction: float = 1.0

    def seconds(self, machine: Machine) -> float:
        compute = self.flops / (machine.flops[self.dtype] * self.fraction)
        return max(compute, self.bytes / machine.bandwidth) + self.calls * machine.call


def _operands(w: Work) -> float:
    return w.n * w.t * (w.i + w.o) * float(w.dtype.itemsize)


def _gemm(w: Work) -> Phase:
    return Phase(w.product, _operands(w) + 4 * w.weight, dtype=w.dtype)


def _contract(w: Work) -> Phase:
    # Inputs are widened before this product (inrun_kernels.contract_dots), hence the rate of the
    # wide dtype.
    dtype = torch.float64 if w.dtype == torch.float64 else torch.float32
    return Phase(w.k * w.product, _operands(w) + 4 * w.k * w.weight, calls=3 * w.k, dtype=dtype)


def _fused_contract(w: Work) -> Phase:
    bytes_moved = w.k * (_operands(w) + 4 * w.weight)
    return Phase(
        w.k * w.product,
        bytes_moved,
        calls=w.k,
        dtype=w.dtype,
        fraction=FUSED_FRACTION[w.dtype.itemsize],
    )


def _hot(w: Work, passes: int) -> Phase:
    """Per sample: the product written and read, widened where it is half precision, `passes` more
    of the wide tile.
    """
    width = float(max(4, w.dtype.itemsize))
    widen = 2 * w.dtype.itemsize if w.dtype.itemsize < 4 else 0
    calls = int(w.n * (3 + w.weight * width // (1536 * 1024)))
    return Phase(bytes=w.n * w.weight * (widen + width * passes), calls=calls)


def _materialise(w: Work) -> list[Phase]:
    # Written once and read once; the writing is charged as if it did not overlap the product, whose
    # reduction is short.
    written = w.n * w.weight * float(w.dtype.itemsize)
    return [_gemm(w), Phase(bytes=2 * written + 4 * w.weight * w.k)]


def _fused(w: Work) -> list[Phase]:
    # Every sample end reads k tiles of V and reduces, while no product runs. V's tiles are shared
    # by the programs that run together and mostly come from L2: a quarter of their bytes is charged
    # at the memory's bandwidth, an assumption.
    sample_ends = Phase(bytes=0.25 * w.n * w.k * 4 * w.weight, calls=0)
    return [
        Phase(
            w.product,
            _operands(w) + 4 * w.weight,
            dtype=w.dtype,
            fraction=FUSED_FRACTION[w.dtype.itemsize],
        ),
        sample_ends,
    ]


ROUTES = {
    "wgrad_dots": {
        "split": lambda w: [_gemm(w), _hot(w, 4 + w.k)],
        "contract": lambda w: [_gemm(w), _contract(w)],
        "bmm": _materialise,
        "fused": _fused,
    },
    "outer_dots": {
        "split": lambda w: [_gemm(w), _hot(w, 1 + w.k)],
        "contract": lambda w: [_contract(w)],
        "fused": lambda w: [_fused_contract(w)],
    },
}
"""Phases of every route of the ops that have more than one."""

BACKEND_ROUTES = {
    "torch": {"wgrad_dots": ("split", "contract"), "outer_dots": ("split", "contract")},
    "triton": {"wgrad_dots": ("fused", "bmm"), "outer_dots": ("fused", "split")},
}
"""Routes a backend can take, by op. `split` on a GPU needs no Triton: one library product per
sample.
"""

_preferred: dict[str, str] = {}


class prefer:
    """Take the named routes whatever the model says: `prefer(wgrad_dots="split")`, or `with
    prefer(...):` for a block.

    Raises ValueError for an op without routes or a route the op does not have.
    """

    def __init__(self, **routes: str):
        for op, route in routes.items():
            if op not in ROUTES or route not in ROUTES[op]:
                known = "; ".join(f"{name}: {', '.join(ways)}" for name, ways in ROUTES.items())
                raise ValueError(f"kernels.cost.prefer({op}={route!r}): known routes are {known}")
        self.previous = dict(_preferred)
        _preferred.update(routes)

    def __enter__(self) -> "prefer":
        return self

    def __exit__(self, *exception) -> None:
        _preferred.clear()
        _preferred.update(self.previous)


def seconds(op: str, route: str, work: Work, machine: Machine) -> float:
    """Predicted time of one call."""
    return sum(phase.seconds(machine) for phase in ROUTES[op][route](work))


def plain_seconds(work: Work, machine: Machine) -> float:
    """Predicted time of the weight gradient alone: one product over all samples."""
    return _gemm(work).seconds(machine)


def choose(op: str, work: Work, backend: str, device: torch.device) -> str:
    """The route of one call: the preferred one, else the fastest measured, else the fastest
    predicted.

    Raises ValueError if a preferred route cannot run on this backend.
    """
    routes = BACKEND_ROUTES[backend][op]
    if op in _preferred:
        if _preferred[op] not in routes:
            raise ValueError(
                f'kernels.cost.prefer({op}="{_preferred[op]}"): the {backend} backend has '
                f"{', '.join(routes)}; "
                "change the preference or the backend (inrun_kernels.use)"
            )
        return _preferred[op]
    return _fastest(op, work, routes, machine_for(device), device_key(device))


@lru_cache(maxsize=4096)
def _fastest(op: str, work: Work, routes: tuple[str, ...], machine: str, device: str) -> str:
    measured = measured_seconds(device)
    times = [measured.get((op, route, work)) for route in routes]
    if any(time is None for time in times):
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
    """Key in `MACHINES` of the model used for a device: by compute capability on a GPU, "cpu" for
    everything else.
    """
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
    sizes = (int(row[name]) for name in ("n", "t", "i", "o", "k"))
    return row["op"], row["route"], Work(*sizes, getattr(torch, row["dtype"]))


def forget_measurements() -> None:
    """Read measured tables anew at the next choice; called after a calibration."""
    measured_seconds.cache_clear()
    _fastest.cache_clear()
