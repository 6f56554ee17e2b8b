"""What every baseline is: a function from a trained run and a target to one value per training
sample, with its cost.

    @baseline("knn_shapley", KNNShapleyOptions, needs=(Featured, Classified))
    def knn_shapley(run, target, options) -> pa.Table: ...          # sample_id, value: `value_table(run, values)`

    scored = measure(run, "val", "knn_shapley", k=5)                # .table, .cost

Convention of all values, as everywhere in this project: positive (higher) = the sample helped the
target, so that every table can stand beside `ValueStore.values` in any metric of `inrun.evaluate`,
and a detector of bad data ranks by `-value`. Scales differ between methods; orders are comparable.

A run is anything that satisfies `TrainedRun`. What only some runs have (features, labels, texts, a
way to train again, values measured in the run) is a small protocol of its own; a baseline names
those that it needs, and a run that lacks one is refused by name before anything is computed.
"""

import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from inrun.config import build
from inrun.registry import Registry

TABLE = pa.schema([("sample_id", pa.int64()), ("value", pa.float64())])


# -- runs and what they can do


@dataclass(frozen=True)
class Checkpoint:
    """Weights that a run kept: after `step` optimizer steps, `lr` being the learning rate of the
    step that led there.
    """

    step: int
    lr: float


@dataclass(frozen=True)
class AdamMoments:
    """Adam's state at a checkpoint: parameter name -> first and second moment, not
    bias-corrected.
    """

    first: dict[str, Tensor]
    second: dict[str, Tensor]
    betas: tuple[float, float]
    eps: float


@runtime_checkable
class TrainedRun(Protocol):
    """A finished training run that can be asked about its samples."""

    @property
    def sample_ids(self) -> np.ndarray:
        """int64 [n]: the training samples, in the order in which tables list them."""

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the validation losses."""

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """In the order of training; the last one holds the final weights."""

    def model(self, checkpoint: int = -1) -> nn.Module:
        """A fresh module with the weights of `checkpoints[checkpoint]`, in eval mode, parameters
        that were trained requiring gradients.
        """

    def losses(self, model: nn.Module, ids: Sequence[int]) -> Tensor:
        """[len(ids)]: each sample's own training loss (nothing divided by a batch size),
        differentiable in the parameters of `model`.
        """

    def target_losses(self, model: nn.Module, target: str) -> Tensor:
        """[m]: the loss of each sample of the target, differentiable; the target's loss is their
        mean.
        """


@runtime_checkable
class Featured(Protocol):
    """features(model, ids), target_features(model, target): vectors in which distance means
    something.
    """

    def features(self, model: nn.Module, ids: Sequence[int]) -> Tensor:
        """[len(ids), d]: what goes into the last linear layer."""

    def target_features(self, model: nn.Module, target: str) -> Tensor:
        """[m, d]"""


@runtime_checkable
class Classified(Protocol):
    """labels(ids), logits(model, ids), target_labels(target), target_logits(model, target): a
    classification run.
    """

    def labels(self, ids: Sequence[int]) -> Tensor:
        """int64 [len(ids)]: the labels that were trained on, flipped ones included."""

    def logits(self, model: nn.Module, ids: Sequence[int]) -> Tensor:
        """[len(ids), classes]"""

    def target_labels(self, target: str) -> Tensor:
        """int64 [m]"""

    def target_logits(self, model: nn.Module, target: str) -> Tensor:
        """[m, classes]"""


@runtime_checkable
class Regressed(Protocol):
    """numbers(ids), predictions(model, ids), target_numbers(target), target_predictions(model,
    target): a regression run on squared errors.
    """

    def numbers(self, ids: Sequence[int]) -> Tensor:
        """[len(ids)]: what was trained on, wrong ones included; the training loss is (prediction -
        number)^2.
        """

    def predictions(self, model: nn.Module, ids: Sequence[int]) -> Tensor:
        """[len(ids)]"""

    def target_numbers(self, target: str) -> Tensor:
        """[m]"""

    def target_predictions(self, model: nn.Module, target: str) -> Tensor:
        """[m]"""


@runtime_checkable
class Textual(Protocol):
    """texts(ids), target_texts(target): a run on text."""

    def texts(self, ids: Sequence[int]) -> list[str]:
        """One text per sample."""

    def target_texts(self, target: str) -> list[str]:
        """One text per sample of the target."""


@runtime_checkable
class Retrainable(Protocol):
    """retrain(ids, seed): the same recipe on other samples."""

    def retrain(self, ids: Sequence[int], seed: int) -> TrainedRun:
        """Train from the start on these of the run's samples (none: the untrained model),
        everything else as in the run; `seed` draws the order (and the initial weights, where they
        are random). Calls `record_training` once."""


@runtime_checkable
class Valued(Protocol):
    """values(method, target): values that an Attributor measured while the run trained."""

    def values(self, method: str, target: str) -> pa.Table:
        """sample_id, value, summed over the run's steps; `method` as it is named in the store."""


@runtime_checkable
class Watched(Protocol):
    """history(): what each sample did at the end of each epoch."""

    def history(self) -> pa.Table:
        """epoch int64 (from 0 before training), sample_id int64, correct bool, error_norm float64
        (Euclidean norm of softmax minus one-hot label).
        """


@runtime_checkable
class Adaptive(Protocol):
    """moments(checkpoint): the Adam state beside the weights."""

    def moments(self, checkpoint: int = -1) -> AdamMoments:
        """As it stood at that checkpoint."""


class MissingCapabilityError(TypeError):
    """A baseline was asked of a run that cannot give what it needs."""


class BaselineError(ValueError):
    """A baseline is not known, or its table is not what the contract says."""


# -- the registry

Score = Callable[[Any, str, Any], pa.Table]


@dataclass(frozen=True)
class NoOptions:
    """For baselines that have none."""


@dataclass(frozen=True)
class Baseline:
    """A registered baseline: `score(run, target, options) -> table`, the dataclass of its options,
    and the capabilities that it needs.
    """

    name: str
    score: Score
    options: type
    needs: tuple[type, ...]

    def check(self, run: TrainedRun, target: str) -> None:
        """Raises MissingCapabilityError or BaselineError if `run` cannot be scored."""
        missing = [p for p in (TrainedRun, *self.needs) if not isinstance(run, p)]
        if missing:
            wanted = "; ".join(f"{p.__name__} ({p.__doc__.splitlines()[0]})" for p in missing)
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
        needs: the protocols of this module that a run must satisfy beside `TrainedRun`.
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


# -- scoring with cost


@dataclass(frozen=True)
class Cost:
    """What a score took beside the run itself.

    Trainings that a cache or another process had done already are counted with the seconds that
    they took there. `peak_bytes`: by how much the resident memory of this process rose above where
    it stood (on CUDA: the allocator's peak instead), None where the system does not tell.
    """

    cpu_seconds: float
    wall_seconds: float
    trainings: int
    peak_bytes: int | None


@dataclass(frozen=True)
class Scored:
    """A baseline's table (sample_id, value) and its cost."""

    name: str
    target: str
    options: dict[str, Any]
    table: pa.Table
    cost: Cost

    @property
    def values(self) -> np.ndarray:
        """float64 [n], in the order of the run's `sample_ids`."""
        return self.table["value"].to_numpy()


def measure(run: TrainedRun, target: str, name: str, **options: Any) -> Scored:
    """Score `run` by a registered baseline, check its table, and record what it cost.

    Raises:
        MissingCapabilityError: the run lacks what the baseline needs.
        BaselineError: unknown baseline or target, or a table with other samples, types, or values
            that are not finite.
        inrun.train.ConfigError: an option that the baseline does not have.
    """
    chosen = get_baseline(name)
    chosen.check(run, target)
    settings = build(chosen.options, options, f"baseline.{name}")
    with _meter() as read:
        table = chosen.score(run, target, settings)
        cost = read()
    _check_table(name, table, run)
    return Scored(name, target, asdict(settings), table, cost)


def record_training(cpu_seconds: float = 0.0, wall_seconds: float = 0.0, count: int = 1) -> None:
    """Book `count` model trainings on the score that is being measured (if any).

    A training in this process, now, is measured anyway and gives no seconds; one that was found in
    a cache, or done by another process, gives the seconds that it took there.
    """
    if (book := _BOOK.get()) is not None:
        book["cpu"] += cpu_seconds
        book["wall"] += wall_seconds
        book["trainings"] += count


_BOOK: ContextVar[dict[str, float] | None] = ContextVar("book", default=None)


@contextmanager
def _meter() -> Iterator[Callable[[], Cost]]:
    book = {"cpu": 0.0, "wall": 0.0, "trainings": 0}
    token = _BOOK.set(book)
    memory = _memory_meter()
    cpu, wall = time.process_time(), time.perf_counter()

    def read() -> Cost:
        return Cost(
            cpu_seconds=time.process_time() - cpu + book["cpu"],
            wall_seconds=time.perf_counter() - wall + book["wall"],
            trainings=int(book["trainings"]),
            peak_bytes=memory(),
        )

    try:
        yield read
    finally:
        _BOOK.reset(token)


def _memory_meter() -> Callable[[], int | None]:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        return lambda: torch.cuda.max_memory_allocated() - before
    try:
        Path("/proc/self/clear_refs").write_text(
            "5"
        )  # the high-water mark starts again from what is resident now
        before = _status_bytes("VmHWM")
        return lambda: max(0, _status_bytes("VmHWM") - before)
    except OSError:
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def risen() -> int | None:  # a mark that cannot be reset tells something only if it was passed
        now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return now - highest if now > highest else None

    return risen


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


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
