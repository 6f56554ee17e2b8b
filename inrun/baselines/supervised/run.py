"""Finished supervised runs, as the contract of baselines wants them: kept in a folder, with values
that were measured while they trained.

    run = train_run(problem, recipe, seed=0, folder="runs/digits-0")
    run.values("path", "val"), run.model(), run.losses(run.model(), run.sample_ids[:8])
    run.retrain(run.sample_ids[:500], seed=1)

A folder that is whole is opened again. Targets are `val` (valued in the run) and `test` (never seen
by a method, for judging it). Models are always in eval mode: no layer here behaves otherwise in
training (GroupNorm; BatchNorm has frozen statistics).
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from inrun.baselines.cost import Clock, record_training
from inrun.baselines.outcomes import Outcomes
from inrun.baselines.retrain import train_one_by_one
from inrun.baselines.runs import AdamMoments, Checkpoint, Ids
from inrun.baselines.supervised.fits import ClassificationFit, Fit, RegressionFit
from inrun.baselines.supervised.recipe import Data, Recipe, fit
from inrun.baselines.supervised.stacked import train_subsets
from inrun.data.labelled import LabelledProblem
from inrun.files import read_json, write_file
from inrun.store import ValueStore

RUN_FILE = "run.json"


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
        self.about = read_json(self.folder / RUN_FILE)
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

    def retrain(self, ids: Ids, seed: int) -> Fit:
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
            state, seconds = _read_training(path)
            record_training(seconds["cpu_seconds"], seconds["wall_seconds"])
            return cls(self.data, self.recipe, rows, last, lambda k: state)
        clock = Clock()
        model = fit(self.data, rows, self.recipe, seed)
        record_training()
        state = saved_state(model)
        if path is not None:
            _write_training(path, state, clock.read())
        return cls(self.data, self.recipe, rows, last, lambda k: state)

    def train_subsets(self, members: np.ndarray, seeds: np.ndarray) -> Outcomes:
        """Small networks are trained many at once (`stacked`), a large one after the other."""
        if self.recipe.network.name == "resnet18":
            return train_one_by_one(self, members, seeds)
        return train_subsets(self.data, self.recipe, members, seeds)

    def values(self, method: str, target: str) -> pa.Table:
        """Charges the seconds that measuring took beside training; see `METHODS` for the names."""
        if target != "val":
            raise ValueError(f"target {target!r} was not valued in the run; val was")
        with ValueStore(self.folder / "values") as store:
            table = store.values("val", method).select(["sample_id", "value"])
        seconds = self.about["seconds"][method]
        record_training(seconds["cpu_seconds"], seconds["wall_seconds"], count=0)
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


class ClassificationRun(ClassificationFit, SupervisedRun):
    """A classification run, with the history of its epochs."""

    def history(self) -> pa.Table:
        return pq.read_table(self.folder / "history.parquet")


class RegressionRun(RegressionFit, SupervisedRun):
    """A regression run."""


def identity(problem: LabelledProblem, recipe: Recipe, seed: int) -> dict:
    """What a training depends on, but for the samples."""
    about = asdict(recipe)
    del about["device"], about["checkpoint_every"], about["moments_every"]
    return {"problem": problem.digest(), "recipe": about, "seed": seed}


def saved_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's state dict as it is kept in files."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


def _write_training(path: Path, state: dict[str, Tensor], seconds: dict[str, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    spent = {f"seconds/{k}": torch.tensor(v, dtype=torch.float64) for k, v in seconds.items()}
    write_file(path, lambda partial: save_file({**state, **spent}, partial))


def _read_training(path: Path) -> tuple[dict[str, Tensor], dict[str, float]]:
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
