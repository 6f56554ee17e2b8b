"""The cost model: what a route's phases multiply and move, and a machine's rates.

A route's predicted time is the sum of its phases, each max(flops / rate, bytes / bandwidth) plus
its calls' overhead: phases do not overlap, and within a phase arithmetic and traffic do. CPU rates
were measured (kernels/inrun_kernels/bench.csv); GPU rates are assumed sustained fractions of data
sheets: nothing here about a GPU's time has been measured.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

FUSED_FRACTION = {2: 0.8, 4: 0.5}
"""Rate of a Triton product as a fraction of the vendor library's, by bytes of the dtype: an
assumption, and the one that the GPU predictions depend on most. float32 products without tf32 use
no tensor cores in either."""


@dataclass(frozen=True)
class Machine:
    """Sustained rates of a device."""

    name: str
    """Key in `MACHINES`."""
    flops: dict[torch.dtype, float]
    """Flop/s of a matrix product, by dtype."""
    bandwidth: float
    """Byte/s of streaming."""
    call: float
    """Seconds of overhead of a call."""


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
    """One layer's batch."""

    n: int
    """Samples."""
    t: int
    """Tokens of a sample; the mean length where they differ."""
    i: int
    """Inputs."""
    o: int
    """Outputs."""
    k: int
    """Directions."""
    dtype: torch.dtype
    """The operands' dtype."""

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
    """A stretch of work."""

    flops: float = 0.0
    """Flops of its products."""
    bytes: float = 0.0
    """Bytes moved."""
    calls: int = 1
    """Calls made."""
    dtype: torch.dtype = torch.float32
    """The products' dtype."""
    fraction: float = 1.0
    """Part of the machine's rate that its products reach."""

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
    """The products of all samples, written and read: `passes` over the wide tile of each.

    Half-precision products are also widened.
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


ROUTES: dict[str, dict[str, Callable[[Work], list[Phase]]]] = {
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


def seconds(op: str, route: str, work: Work, machine: Machine) -> float:
    """Predicted time of one call."""
    return sum(phase.seconds(machine) for phase in ROUTES[op][route](work))


def plain_seconds(work: Work, machine: Machine) -> float:
    """Predicted time of the weight gradient alone: one product over all samples."""
    return _gemm(work).seconds(machine)
