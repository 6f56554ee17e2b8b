"""What every baseline is: a function from a trained run and a target to one value per training
sample, with its cost.

    @baseline("knn_shapley", KNNShapleyOptions, needs=(Featured, Classified))
    def knn_shapley(run, target, options) -> pa.Table: ...          # `value_table(run, values)`

    scored = score(run, "val", "knn_shapley", k=5)                  # .table, .cost

Convention of all values, as everywhere in this project: positive (higher) = the sample helped the
target, so that every table can stand beside `ValueStore.values` in any metric of `inrun.evaluate`,
and a detector of bad data ranks by `-value`. Scales differ between methods; orders are comparable.

A run is anything that satisfies `TrainedRun`; a baseline names the protocols of
`inrun.baselines.runs` that it needs beside it. A run that lacks one is refused by name before
anything is computed.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from inrun.baselines.cost import Cost, metered
from inrun.baselines.runs import TrainedRun
from inrun.config import build
from inrun.registry import Registry

TABLE = pa.schema([("sample_id", pa.int64()), ("value", pa.float64())])


class MissingCapabilityError(TypeError):
    """A baseline was asked of a run that cannot give what it needs."""


class BaselineError(ValueError):
    """A baseline is not known, or its table is not what the contract says."""


Score = Callable[[Any, str, Any], pa.Table]


@dataclass(frozen=True)
class NoOptions:
    """For baselines that have none."""


@dataclass(frozen=True)
class Baseline:
    """A registered baseline."""

    name: str
    "As in `configs/baseline/<name>.yaml`."
    score: Score
    "(run, target, options) -> table."
    options: type
    "The dataclass of its options."
    needs: tuple[type, ...]
    "The capabilities that a run must have beside `TrainedRun`."

    def check(self, run: TrainedRun, target: str) -> None:
        """Raises MissingCapabilityError or BaselineError if `run` cannot be scored."""
        missing = [p for p in (TrainedRun, *self.needs) if not isinstance(run, p)]
        if missing:
            wanted = "; ".join(
                f"{p.__name__} ({(p.__doc__ or '').partition(chr(10))[0]})" for p in missing
            )
            raise MissingCapabilityError(
                f"baseline {self.name!r} cannot score a {type(run).__name__}, which lacks {wanted}"
            )
        if target not in run.targets:
            raise BaselineError(f"no target {target!r}; this run has {', '.join(run.targets)}")


BASELINES: Registry[str, Baseline] = Registry("baseline", error=BaselineError)


def baseline(
    name: str, options: type = NoOptions, *, needs: Sequence[type] = ()
) -> Callable[[Score], Score]:
    """Register `score(run, target, options) -> table` under a name.

    Args:
        name: as in `configs/baseline/<name>.yaml`.
        options: a frozen dataclass, every field with a default.
        needs: the protocols of `inrun.baselines.runs` that a run must satisfy beside `TrainedRun`.
    """
    if not is_dataclass(options):
        raise TypeError(f"options of baseline {name!r} must be a dataclass, got {options!r}")

    def register(score: Score) -> Score:
        BASELINES.add(name, Baseline(name, score, options, tuple(needs)), made_by=score)
        return score

    return register


def get_baseline(name: str) -> Baseline:
    """The baseline of this name; BaselineError names the known ones."""
    return BASELINES[name]


def baseline_names() -> list[str]:
    """Of all registered baselines, in alphabetical order."""
    return sorted(BASELINES)


def value_table(run: TrainedRun, values: Sequence[float] | np.ndarray | Tensor) -> pa.Table:
    """The table of a baseline: `values` [n] in the order of `run.sample_ids`."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    return pa.table(
        [np.asarray(run.sample_ids, np.int64), np.asarray(values, np.float64)], schema=TABLE
    )


@dataclass(frozen=True)
class Scored:
    """A baseline's table and its cost."""

    name: str
    "Of the baseline."
    target: str
    "Of the run."
    options: dict[str, Any]
    "That it was asked with."
    table: pa.Table
    "sample_id, value."
    cost: Cost
    "Beside the run itself."

    @property
    def values(self) -> np.ndarray:
        """float64 [n], in the order of the run's `sample_ids`."""
        return self.table["value"].to_numpy()


def score(run: TrainedRun, target: str, name: str, **options: Any) -> Scored:
    """Score `run` by a registered baseline, check its table, and record what it cost.

    Raises:
        MissingCapabilityError: the run lacks what the baseline needs.
        BaselineError: unknown baseline or target, or a table with other samples, types, or values
            that are not finite.
        inrun.config.ConfigError: an option that the baseline does not have.
    """
    chosen = get_baseline(name)
    chosen.check(run, target)
    settings: Any = build(chosen.options, options, f"baseline.{name}")
    with metered() as read:
        table = chosen.score(run, target, settings)
        cost = read()
    _check_table(name, table, run)
    return Scored(name, target, asdict(settings), table, cost)


def _check_table(name: str, table: pa.Table, run: TrainedRun) -> None:
    if not isinstance(table, pa.Table) or not table.schema.equals(TABLE):
        got = (
            table.schema.to_string().replace("\n", ", ")
            if isinstance(table, pa.Table)
            else type(table).__name__
        )
        raise BaselineError(
            f"baseline {name!r} must return (sample_id: int64, value: double), got {got}; "
            "see value_table"
        )
    if not np.array_equal(table["sample_id"].to_numpy(), run.sample_ids):
        raise BaselineError(
            f"baseline {name!r} returned other samples, or another order, than run.sample_ids"
        )
    values = table["value"].to_numpy()
    if not (finite := np.isfinite(values)).all():
        bad = table["sample_id"].to_numpy()[~finite]
        raise BaselineError(
            f"baseline {name!r}: {len(bad)} of {len(values)} values are not finite, first "
            f"for sample {bad[0]}"
        )
