"""Training a supervised run into its folder: checkpoints, values on the way, what they cost."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from inrun import methods
from inrun.attributor import Attributor
from inrun.baselines.batches import FORWARD
from inrun.baselines.cost import Clock
from inrun.baselines.runs import Checkpoint
from inrun.baselines.supervised.recipe import Data, Recipe, fit, sample_losses
from inrun.baselines.supervised.run import (
    RUN_FILE,
    ClassificationRun,
    RegressionRun,
    SupervisedRun,
    identity,
    saved_state,
)
from inrun.data.labelled import LabelledProblem
from inrun.files import new_folder, write_json
from inrun.methods import FirstOrder, Method, SecondOrder

#: what is measured in every run; the first two are the paper's formulas, the others value the Adam
#: step that is taken
METHODS = (
    FirstOrder(update="sgd", name="first_order_sgd"),
    SecondOrder(update="sgd", name="second_order_sgd"),
    FirstOrder(name="first_order"),
    methods.Path(name="path"),
)


def train_run(
    problem: LabelledProblem,
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
    if not (folder / RUN_FILE).exists():
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
        save_file(saved_state(model), folder / f"weights-{number:03d}.safetensors")
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
    write_json(folder / RUN_FILE, about)


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
            clock = Clock()
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
    p = torch.cat([model(x[k : k + FORWARD]) for k in range(0, len(x), FORWARD)]).softmax(1)
    error = (p - F.one_hot(y, p.shape[1])).norm(dim=1)
    return pa.table(
        {
            "epoch": np.full(len(x), done, np.int64),
            "sample_id": data.problem.train.ids.astype(np.int64),
            "correct": (p.argmax(1) == y).cpu().numpy(),
            "error_norm": error.double().cpu().numpy(),
        }
    )
