"""Asks an engine every case and compares. ``python -m inrun.conformance [engine ...] [--case
text]``; exits with 1 if our own engine fails.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from inrun.conformance.adapter import Adapter
from inrun.conformance.cases import CASES
from inrun.conformance.engine import Engine
from inrun.conformance.libraries import Dattri, Opacus, TorchFunc
from inrun.conformance.library import NotInstalledError
from inrun.conformance.oracle import plain_training, truth
from inrun.conformance.problem import Case

#: Largest relative error of a step's values, ``|found - true| / |true|`` over the samples. Both
#: sides add some 1e4 products in float64 in different orders, and the sums cancel by up to three
#: orders of magnitude: 1e2 x 1e3 x 2.2e-16. Secants of the oracle divide differences that have lost
#: two to three digits more.
VALUE_TOLERANCE = 1e-9

#: The same for weights and gradients of engines that do not claim the same bits.
TRAINING_TOLERANCE = 1e-9

#: Name on the command line -> how the engine is made.
ENGINES: dict[str, Callable[[], Adapter]] = {
    "inrun": Engine,
    "fused": lambda: Engine("fused"),
    "replay": lambda: Engine("replay"),
    "torch.func": TorchFunc,
    "opacus": Opacus,
    "dattri": Dattri,
}


@dataclass(frozen=True)
class Outcome:
    """One engine on one case.

    Attributes:
        status: "pass" | "fail" (wrong numbers) | "error" (it raised) | "not supported".
        error: largest relative error of the values; nan where there are none.
        says: what differs, the exception, or why it is not supported.
        raised: the exception, for status "error".
    """

    case: str
    status: str
    error: float = float("nan")
    says: str = ""
    raised: Exception | None = None


def judge(adapter: Adapter, case: Case, expected: tuple[Mapping, Mapping] | None = None) -> Outcome:
    """Ask one engine one case.

    Args:
        expected: (truth, plain training) of the case, where the caller has them already; see
            `answers`.
    """
    reason = adapter.supports(case)
    if reason:
        return Outcome(case.name, "not supported", says=reason)
    values, state = expected or answers(case)
    try:
        found, left = adapter.values(case), adapter.training(case)
    except Exception as error:  # whatever another engine raises is its result
        return Outcome(
            case.name, "error", says=f"{type(error).__name__}: {error}".split("\n")[0], raised=error
        )
    errors = {key: _relative(found.get(key), true) for key, true in values.items()}
    worst = max(errors.values(), default=float("nan"))
    wrong = [f"{key} off by {e:.1e}" for key, e in errors.items() if not e <= VALUE_TOLERANCE]
    wrong += _differences(left, state, adapter.same_bits)
    return Outcome(case.name, "fail" if wrong else "pass", worst, "; ".join(wrong[:3]))


def answers(case: Case) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What is true: (values, state after training)."""
    return truth(case), plain_training(case)


def _relative(found: Tensor | None, true: Tensor) -> float:
    """Largest relative error of a step; infinite for an answer that is missing, of another shape,
    or not finite.
    """
    if found is None or found.shape != true.shape:
        return float("inf")
    rows = (found.double() - true).reshape(true.shape[0], -1), true.reshape(true.shape[0], -1)
    off, scale = rows[0].norm(dim=1), rows[1].norm(dim=1)
    error = torch.where(
        off == 0, 0.0, off / scale
    )  # a step whose values are all 0 has to be met exactly
    return float("inf") if bool(error.isnan().any()) else float(error.max())


def _differences(
    found: Mapping[str, Tensor], true: Mapping[str, Tensor], same_bits: bool
) -> list[str]:
    wrong = [f"{key}: there without it, not with it" for key in true.keys() - found.keys()]
    wrong += [f"{key}: left behind" for key in found.keys() - true.keys()]
    for key in sorted(true.keys() & found.keys()):
        if torch.equal(found[key], true[key]):
            continue
        if same_bits or not true[key].is_floating_point():
            wrong.append(f"{key}: not the same bits")
        elif (
            error := _relative(found[key].reshape(1, -1), true[key].reshape(1, -1))
        ) > TRAINING_TOLERANCE:
            wrong.append(f"{key} off by {error:.1e}")
    return wrong


def _choose(arguments: Sequence[str] | None) -> tuple[list[str], list[Case]]:
    """Names of engines and the cases to ask them, from the command line; exits where one names
    none.
    """
    parser = argparse.ArgumentParser(prog="python -m inrun.conformance", description=__doc__)
    parser.add_argument(
        "engines",
        nargs="*",
        default=["inrun"],
        help=f"of {', '.join(ENGINES)}; inrun if none is given",
    )
    parser.add_argument("--case", default="", help="only cases whose name contains this text")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.engines if name not in ENGINES]
    if unknown:
        parser.error(f"unknown engine {', '.join(unknown)}; choose from {', '.join(ENGINES)}")
    cases = [case for case in CASES if options.case in case.name]
    if not cases:
        parser.error(f"no case has {options.case!r} in its name")
    return options.engines, cases


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 if our own engine fails a case, 0 otherwise."""
    names, cases = _choose(arguments)
    console = Console()
    adapters = []
    for name in names:
        try:
            adapters.append(ENGINES[name]())
        except NotInstalledError as missing:
            console.print(f"{name}: not installed ({missing})")
    if not adapters:
        return 0
    outcomes = [
        [judge(adapter, case, expected) for adapter in adapters]
        for case, expected in _with_answers(cases)
    ]
    console.print(_table(adapters, outcomes))
    for at, adapter in enumerate(adapters):
        column = [row[at].status for row in outcomes]
        counts = ", ".join(f"{column.count(status)} {status}" for status in dict.fromkeys(column))
        console.print(f"{adapter.name}: {counts}")
    own = [
        o for row in outcomes for adapter, o in zip(adapters, row) if isinstance(adapter, Engine)
    ]
    return int(any(o.status in ("fail", "error") for o in own))


def _with_answers(cases: Iterable[Case]):
    return ((case, answers(case)) for case in cases)


def _table(adapters: Sequence[Adapter], outcomes: list[list[Outcome]]) -> Table:
    table = Table("case", *(adapter.name for adapter in adapters))
    for row in outcomes:
        table.add_row(row[0].case if row else "", *(_cell(outcome) for outcome in row))
    return table


def _cell(outcome: Outcome) -> str:
    if outcome.status == "pass":
        return "pass" if outcome.error != outcome.error else f"pass  {outcome.error:.0e}"
    return f"{outcome.status}: {outcome.says}"
