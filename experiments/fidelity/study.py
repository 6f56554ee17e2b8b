"""How close values come to the exact Shapley values of one real step: `python -m
experiments.fidelity.study --help`.

A small language model is trained with AdamW, and stopped early, in the middle and late. There one
batch is valued by every method, for a step of plain SGD on the sum of the samples' losses (the step
of the paper's section 3) and for the step that AdamW would really take, clipped and with its
moments. The truth is the game of that step, enumerated, or sampled by permutations as in section
5.2; the utility of every coalition met is held against its prediction (E.2.2).

Everything lands in runs/fidelity/<digest of the settings>: tables, figures, a report. A killed
study goes on where it was.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from omegaconf import DictConfig
from rich.console import Console

from experiments.artifacts import Outputs, digest, whole
from experiments.fidelity.probe import PROBES, Study, compare, costs
from experiments.fidelity.report import write_report
from experiments.frame import command, plain
from experiments.study import measured_once
from inrun.config import build
from inrun.data.prepare import DataConfig
from inrun.train import ConfigError, OptimConfig, Run, RunConfig, TrainConfig

SECONDS_BETWEEN_LINES = 30.0


@dataclass(frozen=True)
class ProbeConfig:
    """names: sgd, adamw. lr: learning rates of the valued step."""

    names: tuple[str, ...] = ("sgd", "adamw")
    lr: tuple[float, ...] = (3e-4,)

    def __post_init__(self):
        if not self.names or (unknown := sorted(set(self.names) - set(PROBES))):
            raise ConfigError(
                f"optim.names: {unknown if self.names else 'nothing'} given; choose from "
                f"{', '.join(PROBES)}"
            )
        if not self.lr or min(self.lr) <= 0:
            raise ConfigError(f"optim.lr={list(self.lr)}: one or more positive learning rates")


@dataclass(frozen=True)
class FidelityConfig:
    """The study.

    seeds: of initialisation, batches and target. steps: training steps done before the valued one,
    among those that `train` leaves checkpoints of. players: samples of the valued batch.
    permutations: most orders of the sampled truth, 0 to enumerate. block: tokens of a sample.
    val_chunks: samples of the target, over all domains. record: put the rows into
    experiments/results/fidelity.csv as well.
    """

    scale: str
    model: dict[str, Any]
    data: DataConfig
    train: TrainConfig
    train_optim: OptimConfig
    optim: ProbeConfig
    seeds: tuple[int, ...]
    steps: tuple[int, ...]
    players: int
    permutations: int
    block: int
    val_chunks: int
    runs: str
    data_root: str
    name: str | None = None
    record: bool = False

    def __post_init__(self):
        if not self.seeds or not self.steps:
            raise ConfigError("seeds and steps must not be empty")
        last, every = self.train.steps, self.train.checkpoint_every or self.train.steps
        if lost := [
            step for step in self.steps if not 1 <= step <= last or (step % every and step != last)
        ]:
            raise ConfigError(
                f"steps={lost}: checkpoints are left every {every} steps up to {last} "
                "(train.checkpoint_every, train.steps)"
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


def main(config: DictConfig) -> None:
    console = Console(stderr=True)
    settings = FidelityConfig.from_mapping(plain(config))
    out = Outputs.open(settings.runs, dataclasses.asdict(settings), settings.name)

    def measure() -> None:
        write_report(out, about(settings), *measured(settings, out.folder, console))

    measured_once(out, measure, settings.record, console, "fidelity")


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
    """Rows of figures, samples, coalitions of all cases; a case that is finished lies in
    `folder`/cases and is read from there.
    """
    cases = folder / "cases"
    cases.mkdir(exist_ok=True)
    everything: tuple[list[dict], list[dict], list[dict]] = ([], [], [])
    total = (
        len(settings.seeds)
        * len(settings.steps)
        * len(settings.optim.names)
        * len(settings.optim.lr)
    )
    done = 0
    for seed in settings.seeds:
        run = trained(settings, seed, console)
        for step in settings.steps:
            study = Study(
                run,
                step,
                seed,
                settings.players,
                settings.permutations,
                settings.block,
                settings.val_chunks,
            )
            for optimizer in settings.optim.names:
                seconds = _remembered(
                    cases / f"costs-{optimizer}.json",
                    lambda study=study, optimizer=optimizer: costs(study, optimizer),
                )
                for lr in settings.optim.lr:
                    began = time.monotonic()
                    label = f"seed {seed}, step {step}, {optimizer}, lr {lr:g}"
                    with _progress(console, label) as report:
                        found = _remembered(
                            cases / f"seed-{seed}-step-{step}-{optimizer}-lr-{lr:g}.json",
                            lambda: compare(study, optimizer, lr, seconds, report),  # noqa: B023
                        )
                    where = {"seed": seed, "train_steps": step, "optimizer": optimizer, "lr": lr}
                    for all_rows, rows in zip(everything, found):
                        all_rows += [{**where, **row} for row in rows]
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


def _remembered(path: Path, compute: Callable[[], Any]) -> Any:
    """What `compute` gives, as JSON has it; computed once, then read from `path`."""
    if not path.is_file():
        found = compute()
        whole(path, lambda beside: beside.write_text(json.dumps(found), encoding="utf-8"))
    return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def _progress(console: Console, label: str) -> Iterator[Callable[[int], None]]:
    """Shows the number of coalitions: a live line on a terminal, a plain one twice a minute
    elsewhere.
    """
    if console.is_terminal:
        with console.status(label) as status:
            yield lambda coalitions: status.update(f"{label}: {coalitions} coalitions")
        return
    last = [time.monotonic()]

    def line(coalitions: int) -> None:
        if time.monotonic() - last[0] >= SECONDS_BETWEEN_LINES:
            last[0] = time.monotonic()
            console.print(f"{label}: {coalitions} coalitions", highlight=False, soft_wrap=True)

    yield line


if __name__ == "__main__":
    command("fidelity", main)
