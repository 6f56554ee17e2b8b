"""Finished supervised runs, as the contract of baselines wants them: kept in a folder, with values
that were measured while they trained.

    run = train_run(problem, recipe, seed=0, folder="runs/digits-0")      # trains once; a folder that is whole is opened again
    run.values("path", "val"), run.model(), run.losses(run.model(), run.sample_ids[:8]), run.retrain(run.sample_ids[:500], seed=1)

Targets are `val` (valued in the run) and `test` (never seen by a method, for judging it). Models
are always in eval mode: no layer here behaves otherwise in training (GroupNorm; BatchNorm has
frozen statistics).
"""

import hashlib
import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from inrun import methods
from inrun.attributor import Attributor
from inrun.baselines.pool import Outcomes, train_one_by_one
from inrun.baselines.registry import AdamMoments, Checkpoint, record_training
from inrun.baselines.supervised.recipe import Data, Recipe, fit, network, sample_losses
from inrun.baselines.supervised.stacked import train_subsets
from inrun.data.labelled import Problem
from inrun.files import new_folder, read_json, write_file, write_json
from inrun.methods import FirstOrder, Method, SecondOrder
from inrun.store import ValueStore

#: what is measured in every run; the first two are the paper's formulas, the others value the Adam
#: step that is taken
METHODS = (
    FirstOrder(update="sgd", name="first_order_sgd"),
    SecondOrder(update="sgd", name="second_order_sgd"),
    FirstOrder(name="first_order"),
    methods.Path(name="path"),
)
BATCH = 256  # samples per forward where nothing is kept


class Fit:
    """A trained model and its data: what every supervised run is, the retrained ones too (those
    kept their last weights only).
    """

    targets = ("val", "test")

    def __init__(
        self,
        data: Data,
        recipe: Recipe,
        rows: np.ndarray,
        checkpoints: Sequence[Checkpoint],
        weights,
    ):
        self.data, self.problem, self.recipe = data, data.problem, recipe
        self.sample_ids: np.ndarray = data.problem.train.ids[np.sort(rows)]
        self.checkpoints = tuple(checkpoints)
        self._weights = weights  # checkpoint number -> state dict

    def model(self, checkpoint: int = -1) -> nn.Module:
        state = self._weights(range(len(self.checkpoints))[checkpoint])
        with torch.random.fork_rng(devices=[]):
            model = network(self.recipe.network, self.problem)
        model.load_state_dict(state)
        return model.to(self.data.device)

    def losses(self, model: nn.Module, ids: Sequence[int]) -> Tensor:
        x, y = self._train(ids)
        return sample_losses(model(x), y, self.problem.classes, self.recipe.label_smoothing)

    def target_losses(self, model: nn.Module, target: str) -> Tensor:
        x, y = self.data.targets[target]
        return sample_losses(model(x), y, self.problem.classes)

    def features(self, model: nn.Module, ids: Sequence[int]) -> Tensor:
        return model.features(self._train(ids)[0])

    def target_features(self, model: nn.Module, target: str) -> Tensor:
        return model.features(self.data.targets[target][0])

    @torch.no_grad()
    def quality(self, target: str, checkpoint: int = -1) -> float:
        """Accuracy, or in a regression the coefficient of determination R^2: 1 is perfect, 0 what
        the target's mean scores.
        """
        x, y = self.data.targets[target]
        out = self.model(checkpoint)(x)
        if self.problem.classes:
            return float((out.argmax(1) == y).double().mean())
        return 1 - float(((out[:, 0] - y) ** 2).mean() / y.var(correction=0))

    def _train(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        at = torch.from_numpy(self.data.rows(ids)).to(self.data.device)
        return self.data.train[0][at], self.data.train[1][at]


class Classes:
    """What a classification adds."""

    def labels(self, ids: Sequence[int]) -> Tensor:
        return self._train(ids)[1]

    def logits(self, model: nn.Module, ids: Sequence[int]) -> Tensor:
        return model(self._train(ids)[0])

    def target_labels(self, target: str) -> Tensor:
        return self.data.targets[target][1]

    def target_logits(self, model: nn.Module, target: str) -> Tensor:
        return model(self.data.targets[target][0])


class Numbers:
    """What a regression adds."""

    def numbers(self, ids: Sequence[int]) -> Tensor:
        return self._train(ids)[1]

    def predictions(self, model: nn.Module, ids: Sequence[int]) -> Tensor:
        return model(self._train(ids)[0])[:, 0]

    def target_numbers(self, target: str) -> Tensor:
        return self.data.targets[target][1]

    def target_predictions(self, model: nn.Module, target: str) -> Tensor:
        return model(self.data.targets[target][0])[:, 0]


class ClassificationFit(Classes, Fit):
    """A retrained classifier."""


class RegressionFit(Numbers, Fit):
    """A retrained regression."""


class SupervisedRun(Fit):
    """A run in a folder: checkpoints, Adam's moments at some of them, values of `METHODS`; `cache`
    keeps what `retrain` trained.
    """

    def __init__(
        self,
        data: Data,
        recipe: Recipe,
        seed: int,
        folder: str | Path,
        cache: str | Path | None = None,
    ):
        self.folder, self.seed = Path(folder), seed
        self.about = read_json(self.folder / "run.json")
        _check_same(self.about["identity"], identity(data.problem, recipe, seed), self.folder)
        checkpoints = [Checkpoint(**c) for c in self.about["checkpoints"]]
        super().__init__(
            data,
            recipe,
            np.arange(len(data.problem.train)),
            checkpoints,
            lambda k: load_file(self._file("weights", k)),
        )
        self.cache = Path(cache) if cache else None

    @property
    def digest(self) -> str:
        """Of what a retraining depends on, but for the samples and the seed."""
        about = identity(self.problem, self.recipe, 0)
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    def retrain(self, ids: Sequence[int], seed: int) -> Fit:
        """Kept in `cache` by content: the problem, the recipe, the ids and the seed. With no ids:
        the new model as it is.
        """
        rows = np.sort(self.data.rows(ids))
        if len(np.unique(rows)) < len(rows):
            raise ValueError("retrain needs each id only once")
        last = [
            Checkpoint(
                -(-len(rows) // self.recipe.batch) * self.recipe.epochs,
                self.recipe.lr_of(self.recipe.epochs - 1),
            )
        ]
        cls = ClassificationFit if self.problem.classes else RegressionFit
        path = self._cached(rows, seed)
        if path is not None and path.exists():
            state, seconds = _read(path)
            record_training(**seconds)
            return cls(self.data, self.recipe, rows, last, lambda k: state)
        clock = _Clock()
        model = fit(self.data, rows, self.recipe, seed)
        record_training()
        state = _state(model)
        if path is not None:
            _write(path, state, clock.read())
        return cls(self.data, self.recipe, rows, last, lambda k: state)

    def train_subsets(self, members: np.ndarray, seeds: np.ndarray) -> Outcomes:
        """Small networks are trained many at once (`stacked`), a large one after the other."""
        if self.recipe.network.name == "resnet18":
            return train_one_by_one(self, members, seeds)
        return train_subsets(self.data, self.recipe, members, seeds)

    def values(self, method: str, target: str) -> pa.Table:
        """Books the seconds that measuring took beside training (`METHODS` names what there is)."""
        if target != "val":
            raise ValueError(f"target {target!r} was not valued in the run; val was")
        with ValueStore(self.folder / "values") as store:
            table = store.values("val", method).select(["sample_id", "value"])
        record_training(**self.about["seconds"][method], count=0)
        return table

    def moments(self, checkpoint: int = -1) -> AdamMoments:
        number = range(len(self.checkpoints))[checkpoint]
        path = self._file("moments", number)
        if not path.exists():
            kept = sorted(
                int(p.stem.rpartition("-")[2]) for p in self.folder.glob("moments-*.safetensors")
            )
            raise ValueError(
                f"checkpoint {number} kept no Adam state; checkpoints {kept} did "
                "(recipe.moments_every)"
            )
        parts = load_file(path)
        first, second = (
            {k.partition("/")[2]: v for k, v in parts.items() if k.startswith(p)}
            for p in ("first/", "second/")
        )
        return AdamMoments(first, second, betas=(0.9, 0.999), eps=1e-8)

    def _file(self, kind: str, number: int) -> Path:
        return self.folder / f"{kind}-{number:03d}.safetensors"

    def _cached(self, rows: np.ndarray, seed: int) -> Path | None:
        if self.cache is None:
            return None
        key = (
            json.dumps(identity(self.problem, self.recipe, seed), sort_keys=True).encode()
            + rows.astype(np.int64).tobytes()
        )
        name = hashlib.sha256(key).hexdigest()
        return self.cache / name[:2] / f"{name}.safetensors"


class ClassificationRun(Classes, SupervisedRun):
    """A classification run, with the history of its epochs."""

    def history(self) -> pa.Table:
        return pq.read_table(self.folder / "history.parquet")


class RegressionRun(Numbers, SupervisedRun):
    """A regression run."""


def identity(problem: Problem, recipe: Recipe, seed: int) -> dict:
    """What a training depends on, but for the samples."""
    about = asdict(recipe)
    del about["device"], about["checkpoint_every"], about["moments_every"]
    return {"problem": problem.digest(), "recipe": about, "seed": seed}


def train_run(
    problem: Problem,
    recipe: Recipe,
    seed: int,
    folder: str | Path,
    cache: str | Path | None = None,
    methods: Sequence[Method] = METHODS,
) -> SupervisedRun:
    """The run of this folder, trained with values if it is not there yet; it appears there when it
    is whole.
    """
    folder, data = Path(folder), Data(problem, recipe.device)
    if not (folder / "run.json").exists():
        with new_folder(folder) as unfinished:
            _train_into(unfinished, data, recipe, seed, methods)
    cls = ClassificationRun if problem.classes else RegressionRun
    return cls(data, recipe, seed, folder, cache)


def _train_into(
    folder: Path, data: Data, recipe: Recipe, seed: int, methods: Sequence[Method]
) -> None:
    rows, problem = np.arange(len(data.problem.train)), data.problem
    checkpoints: list[dict] = []
    history: list[pa.Table] = []
    per_epoch = -(-len(rows) // recipe.batch)

    def after_epoch(done: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if problem.classes:
            history.append(_epoch_row(done, data, model))
        if done == 0 or done % recipe.checkpoint_every:
            return
        number = len(checkpoints)
        checkpoints.append(asdict(Checkpoint(done * per_epoch, recipe.lr_of(done - 1))))
        save_file(_state(model), folder / f"weights-{number:03d}.safetensors")
        if done % recipe.moments_every == 0 or done == recipe.epochs:
            named = {id(p): name for name, p in model.named_parameters()}
            parts = {
                f"{kind}/{named[id(p)]}": state[key].detach().cpu().contiguous()
                for p, state in optimizer.state.items()
                for kind, key in (("first", "exp_avg"), ("second", "exp_avg_sq"))
            }
            save_file(parts, folder / f"moments-{number:03d}.safetensors")

    with ExitStack() as stack:
        attribution = _attribution(data, methods, stack, folder / "values") if methods else None
        fit(data, rows, recipe, seed, after_epoch, attribution)
    seconds = _method_seconds(data, recipe, seed, methods)
    if history:
        pq.write_table(pa.concat_tables(history), folder / "history.parquet")
    about = {
        "identity": identity(problem, recipe, seed),
        "checkpoints": checkpoints,
        "seconds": seconds,
    }
    write_json(folder / "run.json", about)


def _attribution(data: Data, methods: Sequence[Method], stack: ExitStack, store: Path | None):
    """For `fit`: values towards the validation loss by these methods."""
    x, y = data.targets["val"]

    def begin(model: nn.Module, optimizer: torch.optim.Optimizer):
        target = {"val": lambda: sample_losses(model(x), y, data.problem.classes).mean()}
        return stack.enter_context(
            Attributor(model, optimizer, target, list(methods), store=store)
        ).batch

    return begin


def _method_seconds(
    data: Data, recipe: Recipe, seed: int, methods: Sequence[Method]
) -> dict[str, dict[str, float]]:
    """What each method alone costs beside plain training: measured over one epoch, after one step
    of warming up, times the number of epochs.
    """
    rows, one = np.arange(len(data.problem.train)), _epochs(recipe, 1)
    times = {}
    for method in (None, *methods):
        with ExitStack() as stack:
            attribution = _attribution(data, [method], stack, None) if method else None
            fit(data, rows[: recipe.batch], one, seed, attribution=attribution)
            clock = _Clock()
            fit(data, rows, one, seed, attribution=attribution)
            times[method.name if method else "plain"] = clock.read()
    plain = times.pop("plain")
    return {
        name: {key: max(0.0, spent[key] - plain[key]) * recipe.epochs for key in plain}
        for name, spent in times.items()
    }


def _epochs(recipe: Recipe, epochs: int) -> Recipe:
    return Recipe(**{**vars(recipe), "epochs": epochs, "checkpoint_every": 1})


@torch.no_grad()
def _epoch_row(done: int, data: Data, model: nn.Module) -> pa.Table:
    x, y = data.train
    p = torch.cat([model(x[k : k + BATCH]) for k in range(0, len(x), BATCH)]).softmax(1)
    error = (p - F.one_hot(y, p.shape[1])).norm(dim=1)
    return pa.table(
        {
            "epoch": np.full(len(x), done, np.int64),
            "sample_id": data.problem.train.ids.astype(np.int64),
            "correct": (p.argmax(1) == y).cpu().numpy(),
            "error_norm": error.double().cpu().numpy(),
        }
    )


@dataclass
class _Clock:
    def __post_init__(self):
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def read(self) -> dict[str, float]:
        return {
            "cpu_seconds": time.process_time() - self.cpu,
            "wall_seconds": time.perf_counter() - self.wall,
        }


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


def _write(path: Path, state: dict[str, Tensor], seconds: dict[str, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    spent = {f"seconds/{k}": torch.tensor(v, dtype=torch.float64) for k, v in seconds.items()}
    write_file(path, lambda partial: save_file({**state, **spent}, partial))


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, float]]:
    parts = load_file(path)
    seconds = {
        name.partition("/")[2]: float(parts.pop(name))
        for name in list(parts)
        if name.startswith("seconds/")
    }
    return parts, seconds


def _check_same(found: dict, wanted: dict, folder: Path) -> None:
    if found != wanted:
        different = [key for key in wanted if found.get(key) != wanted[key]]
        raise ValueError(
            f"{folder} holds a run with another {', '.join(different)}; give another folder, "
            "or delete it"
        )
