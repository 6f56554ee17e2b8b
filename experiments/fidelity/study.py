"""How close values come to the exact Shapley values of one real optimizer step.

A small language model is trained with AdamW, and stopped early, in the middle and late. There one
batch is valued by every method, for a step of plain SGD on the sum of the samples' losses (the step
of the paper's section 3) and for the step that the training would really take, clipped and with its
moments (or momentum). The truth is the game of that step, enumerated, or sampled by permutations as
in section 5.2; the utility of every coalition met is held against its prediction (E.2.2).

  python -m experiments fidelity                                8 samples, 2^8 coalitions, 3 seeds
  python -m experiments fidelity seeds=[0] steps=[200]          one of them: two minutes
  python -m experiments fidelity scale=early                    the first steps, without warm-up
  python -m experiments fidelity model=pythia-tiny              the same with Pythia
  python -m experiments fidelity players=16 permutations=128    16 samples, the truth sampled
  python -m experiments fidelity -m optim.lr=1e-4,1e-3          a study for each learning rate
  python -m experiments fidelity scale=paper                    GPT-2 124M on the Pile: needs a GPU

A killed study goes on where it was.
"""

import dataclasses
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.console import Console

from experiments.artifacts import Outputs, digest
from experiments.fidelity.probe import PROBES, ValuedStep, compare, costs, own_step
from experiments.fidelity.report import report
from experiments.frame import StudyConfig, study
from inrun.config import ConfigError, build
from inrun.data.prepare import DataConfig
from inrun.files import remember
from inrun.progress import live_line
from inrun.train import OptimConfig, Run, RunConfig, TrainConfig

SECONDS_BETWEEN_LINES = 30.0
#: the tables of the study
TABLES = ("fidelity", "samples", "coalitions")


@dataclass(frozen=True)
class ProbeConfig:
    """The step that is valued."""

    names: tuple[str, ...] = ("sgd", "adamw")
    """who takes it: sgd, without momentum, on the sum of losses; or the training's own optimizer,
    adamw, lion, or momentum for train_optim.name=sgd"""
    lr: tuple[float, ...] = (3e-4,)
    """learning rates: one number, or a list"""

    def __post_init__(self):
        if not self.names or (unknown := sorted(set(self.names) - set(PROBES))):
            raise ConfigError(
                f"optim.names: {unknown if self.names else 'nothing'} given; choose from "
                f"{', '.join(PROBES)}"
            )
        if not self.lr or min(self.lr) <= 0:
            raise ConfigError(f"optim.lr={list(self.lr)}: one or more positive learning rates")


@dataclass(frozen=True, kw_only=True)
class FidelityConfig(StudyConfig):
    """The study."""

    model: dict[str, Any]
    """name, preset, and what differs from the preset"""
    data: DataConfig
    """what is trained on; the batch and the target come from it too"""
    train: TrainConfig
    """the training that leads to the valued step"""
    train_optim: OptimConfig
    """its optimizer"""
    optim: ProbeConfig
    """the step that is valued"""
    seeds: tuple[int, ...]
    """of initialisation, batches and target"""
    steps: tuple[int, ...]
    """training steps done before the valued one: 0, or those that leave a checkpoint"""
    players: int
    """samples of the valued batch"""
    permutations: int
    """most orders of the sampled truth; 0: enumerate"""
    block: int
    """tokens of a sample"""
    val_chunks: int
    """samples of the target, over all domains"""

    def __post_init__(self):
        if not self.seeds or not self.steps:
            raise ConfigError("seeds and steps must not be empty")
        last, every = self.train.steps, self.train.checkpoint_every or self.train.steps
        if lost := [
            step for step in self.steps if not 0 <= step <= last or (step % every and step != last)
        ]:
            raise ConfigError(
                f"steps={lost}: checkpoints are left every {every} steps up to {last} "
                "(train.checkpoint_every, train.steps)"
            )
        if foreign := sorted(set(self.optim.names) - {"sgd", own_step(self.train_optim)}):
            raise ConfigError(
                f"optim.names: {', '.join(foreign)} needs a training with that optimizer "
                f"(optim@train_optim=...), this one is trained with {self.train_optim.name}"
            )
        if not 2 <= self.players <= (64 if self.permutations else 12):
            raise ConfigError(
                f"players={self.players}: 2 to 12 to enumerate; more need permutations > 0"
            )
        if not 1 <= self.block <= self.data.block_size:
            raise ConfigError(
                f"block={self.block} must be 1 to data.block_size={self.data.block_size}"
            )

    @classmethod
    def from_mapping(cls, values: dict[str, Any]) -> "FidelityConfig":
        """Strict; one learning rate may stand where a list does, so that `-m optim.lr=...` sweeps
        it.
        """
        lr = values["optim"]["lr"]
        listed = [lr] if isinstance(lr, (int, float)) else lr
        return build(cls, {**values, "optim": {**values["optim"], "lr": listed}})

    def identity(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The settings as they were understood: one learning rate is a list of one."""
        return dataclasses.asdict(self)


@study("fidelity", FidelityConfig, report)
def measure(settings: FidelityConfig, out: Outputs, console: Console) -> None:
    """Rows of figures, samples and coalitions of all cases."""
    for name, rows in zip(TABLES, measured(settings, out.folder, console)):
        where = about(settings) if name == "fidelity" else {}
        out.table(name, [{**row, **where} for row in rows])


def about(settings: FidelityConfig) -> dict[str, Any]:
    """What stands in every row."""
    return {
        "scale": settings.scale,
        "model": settings.model["name"],
        "players": settings.players,
        "permutations": settings.permutations,
        "block": settings.block,
    }


def measured(
    settings: FidelityConfig, folder: Path, console: Console
) -> tuple[list[dict], list[dict], list[dict]]:
    """Rows of figures, samples, coalitions of all cases.

    A case that is finished lies in `folder`/cases and is read from there.
    """
    cases = folder / "cases"
    everything: tuple[list[dict], list[dict], list[dict]] = ([], [], [])
    probes = [(o, lr) for o in settings.optim.names for lr in settings.optim.lr]
    total = len(settings.seeds) * len(settings.steps) * len(probes)
    done = 0
    for valued in valued_steps(settings, console):
        for optimizer, lr in probes:
            began = time.monotonic()
            label = f"seed {valued.seed}, step {valued.step}, {optimizer}, lr {lr:g}"
            found = _case(cases, valued, optimizer, lr, console, label)
            where = {"seed": valued.seed, "train_steps": valued.step, "optimizer": optimizer}
            for all_rows, rows in zip(everything, found):
                all_rows += [{**where, "lr": lr, **row} for row in rows]
            done += 1
            errors = [
                f"{r['method']} {r['relative_rmse']:.2g}"
                for r in found[0]
                if r["quantity"] == "values"
            ]
            console.print(
                f"[{done}/{total}] {label}, {time.monotonic() - began:.0f} s; RMSE / "
                f"spread: {', '.join(errors)}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
    return everything


def valued_steps(settings: FidelityConfig, console: Console) -> Iterator[ValuedStep]:
    """The steps that are valued, run after run."""
    for seed in settings.seeds:
        run = trained(settings, seed, console)
        for step in settings.steps:
            yield ValuedStep(
                run,
                step,
                seed,
                settings.players,
                settings.permutations,
                settings.block,
                settings.val_chunks,
            )


def _case(
    cases: Path, valued: ValuedStep, optimizer: str, lr: float, console: Console, label: str
) -> Any:
    """The rows of `compare`, computed or remembered."""
    seconds = remember(cases / f"costs-{optimizer}.json", lambda: costs(valued, optimizer))
    name = f"seed-{valued.seed}-step-{valued.step}-{optimizer}-lr-{lr:g}.json"
    with live_line(console, label, SECONDS_BETWEEN_LINES) as shown:

        def count(coalitions: int) -> None:
            shown(f"{label}: {coalitions} coalitions")

        return remember(cases / name, lambda: compare(valued, optimizer, lr, seconds, count))


def trained(settings: FidelityConfig, seed: int, console: Console) -> Run:
    """The training run of a seed with all its checkpoints; an earlier study's run is used again."""
    config = RunConfig(
        name=f"seed-{seed}",
        model=settings.model,
        data=settings.data,
        optim=settings.train_optim,
        train=dataclasses.replace(settings.train, keep=10**6),
        data_root=settings.data_root,
        seed=seed,
    )
    root = Path(settings.runs) / "trained" / digest(config.to_mapping())
    config = dataclasses.replace(config, runs=str(root))
    folder = root / config.name
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # the jobs of a parallel sweep share the run
        run = Run.resume(folder, console) if folder.exists() else Run.start(config, console)
        if run.step < config.train.steps:
            console.print(f"seed {seed}: training to step {config.train.steps}", highlight=False)
        run.train()
    return run
