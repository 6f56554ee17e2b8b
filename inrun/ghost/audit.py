"""The audit: a sample's value depends on its own data alone.

Let d_i be what is found of sample i for a fixed direction V, so that ``sum_i d_i = <G, V>`` (the
balance). If every d_i depends on the data of sample i only, then ``<G, V>`` is additive over the
samples, and d_i is ``<g_i, V>``. So a recorded micro-batch runs again with the data of some samples
changed, and the d of all others must stand still: whatever the operations are, wrong rows, samples
along another axis, and losses of several samples together (contrastive ones) move them.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from inrun.ghost.audit_calls import Recording
from inrun.ghost.audit_data import BatchData, RowOwners, subsets
from inrun.ghost.audit_runs import Again, Run

#: Largest move of an unchanged sample's part, relative to the largest move of a changed one's. Rows
#: of other samples come out as the same bits where rules are right; a mixture is of order one.
LEAK = 1e-3
#: A part that moved by less, relative to the sample's largest, has not moved.
STILL = 1e-6

#: name -> [n], of one run; it is given (run, parameters, directions)
Dots = Callable[[Run, Mapping[str, Tensor], Mapping[str, Tensor]], Mapping[str, Tensor]]


@dataclass
class Findings:
    """What an audit saw.

    Attributes:
        leaks: parameter -> largest move of a part whose sample's data stood still, relative to the
            moves of changed ones; those above `LEAK`.
        moved: index of the sample whose part moved most, where there are leaks.
        unproven: indices of samples whose parts no change of their data moved.
        untested: parameters that got no part, or whose parts nothing moved.
        shapes: of the tensors that were changed.
        tests: runs with changed data.
        finite: whether the parts were; otherwise nothing was tested.
    """

    leaks: dict[str, float] = field(default_factory=dict)
    moved: int | None = None
    unproven: list[int] = field(default_factory=list)
    untested: list[str] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    tests: int = 0
    finite: bool = True


def audit(
    recording: Recording,
    parameters: Mapping[str, Tensor],
    owners: RowOwners,
    dots: Dots,
    before: Callable[[], None],
    groups: int | None = None,
    told: Callable[[int], None] = lambda runs: None,
) -> Findings:
    """Run a recorded micro-batch again, once as it was and m times changed.

    Nothing that training sees is left changed.

    Args:
        parameters: name -> tracked parameter.
        owners: whose the rows of its tensors are.
        dots: takes the samples' parts in one run.
        before: called before each run (random state).
        groups: samples are told apart in so many groups; None: each from every other.
        told: called with m after the first run.

    Raises:
        CannotRunAgain: the micro-batch cannot be run from what was recorded.
    """
    stand_in = {name: p.detach().requires_grad_() for name, p in parameters.items()}
    directions = {name: _direction(p, k) for k, (name, p) in enumerate(parameters.items())}
    again = Again(recording, stand_in)

    def parts(data: BatchData, samples: Tensor | None = None) -> dict[str, Tensor]:
        before()
        found = dots(again.start(data, samples), stand_in, directions)
        for p in stand_in.values():
            p.grad = None
        return {name: d.detach().double().cpu() for name, d in found.items()}

    with _unwritten(recording, parameters):
        findings = Findings()
        for all_of_it in (False, True):
            data = BatchData(recording, owners, all_of_it)
            again.decided.clear()
            base = parts(data)
            if not all(bool(torch.isfinite(d).all()) for d in base.values()):
                return Findings(finite=False)
            tests = subsets(owners.n, groups)
            told(len(tests))
            moves = [_moves(base, parts(data, samples), samples) for samples in tests]
            findings = _findings(base, moves, tests, recording.used_parameters, data)
            if findings.leaks:
                _drop_noise(findings, base, parts(data), moves, tests)
            if findings.leaks or not findings.unproven:
                break
    return findings


def _direction(p: Tensor, seed: int) -> Tensor:
    """A random direction [1, *shape] of norm one."""
    generator = torch.Generator(p.device).manual_seed(seed)
    dtype = torch.promote_types(p.real.dtype if p.is_complex() else p.dtype, torch.float32)
    V = torch.randn(1, *p.shape, generator=generator, device=p.device, dtype=dtype)
    return V / V.norm()


@contextmanager
def _unwritten(recording: Recording, parameters: Mapping[str, Tensor]) -> Iterator[None]:
    """Parameters that recorded calls write to (a table's max_norm) are put back."""
    kept = [
        (about.outside, about.outside.detach().clone())
        for about in recording.tensors
        if about.written and isinstance(about.outside, torch.nn.Parameter)
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for p, before in kept:
                p.copy_(before)


def _moves(
    base: Mapping[str, Tensor], now: Mapping[str, Tensor], samples: Tensor
) -> dict[str, Tensor]:
    """How far each part moved [n], up to one factor for all: the user's own reduction."""
    still = ~samples
    c = 1.0
    if any(not torch.equal(now[name][still], d[still]) for name, d in base.items() if name in now):
        ratios = torch.cat(
            [(now[name] / d)[still & (d.abs() > LEAK * d.abs().max())] for name, d in base.items()]
        )
        middle = float(ratios.nanmedian()) if len(ratios) else 1.0
        c = middle if abs(middle) > STILL and middle < float("inf") else 1.0
    return {name: (now[name] - c * d).abs() for name, d in base.items()}


def _findings(
    base: Mapping[str, Tensor],
    moves: list[dict[str, Tensor]],
    tests: Tensor,
    names: list[str],
    data: BatchData,
) -> Findings:
    found = Findings(shapes=data.shapes, tests=len(tests))
    sizes = (
        torch.stack([d.abs() for d in base.values()]).amax(0)
        if base
        else torch.zeros(data.owners.n)
    )
    proven = sizes == 0  # without a gradient there is nothing to move
    worst = 0.0
    for name, d in base.items():
        changed, still = _by_test(name, moves, tests)
        proven |= changed.amax(0) > STILL * sizes
        if not still.any() and not changed.any():
            found.untested += [name] if d.any() else []
            continue
        leak = float(still.max() / changed.max())
        if leak > LEAK:
            found.leaks[name] = leak
            if leak > worst:
                worst, found.moved = leak, int(still.amax(0).argmax())
    if "" not in base:  # of all parameters together
        found.untested += [name for name in names if name not in base]
    found.unproven = (~proven).nonzero().flatten().tolist()
    return found


def _by_test(name: str, moves: list[dict[str, Tensor]], tests: Tensor) -> tuple[Tensor, Tensor]:
    """How far the parts of changed and of unchanged samples moved, [m, n] each."""
    rows = torch.stack([move[name] for move in moves])
    nothing = torch.zeros_like(rows)
    changed = torch.where(tests, rows, nothing).nan_to_num(0.0, 0.0)
    return changed, torch.where(tests, nothing, rows).nan_to_num(torch.inf)


def _drop_noise(
    findings: Findings,
    base: Mapping[str, Tensor],
    repeated: Mapping[str, Tensor],
    moves: list[dict[str, Tensor]],
    tests: Tensor,
) -> None:
    """Forget leaks that are as small as the difference of two runs without a change (atomics)."""
    for name in list(findings.leaks):
        noise = (repeated[name] - base[name]).abs().max()
        if _by_test(name, moves, tests)[1].max() <= 10 * noise:
            del findings.leaks[name]
