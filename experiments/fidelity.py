"""How close values come to the exact Shapley values of one real step: `python -m experiments.fidelity --help`.

A small GPT-2 is trained to a given step with AdamW. There one batch is valued by every method, for a step of plain SGD on the sum of the samples' losses (the
step of the paper's section 3) and for the step that AdamW would really take, clipped and with its moments. The truth is the game of that step, enumerated,
or sampled by permutations as in section 5.2. Everything lands in runs/fidelity/<name>: tables, a figure, a report.
"""

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from experiments.command import command, plain
from experiments.fidelity_probe import PROBES, Study, compare, costs
from experiments.fidelity_report import write_report
from inrun.data.prepare import DataConfig
from inrun.train import ConfigError, OptimConfig, Run, RunConfig, TrainConfig
from inrun.train.loop import git_revision
from inrun.train.strict import build

SECONDS_BETWEEN_LINES = 30.0


@dataclass(frozen=True)
class ProbeConfig:
    """names: sgd, adamw. lr: learning rates of the valued step."""

    names: tuple[str, ...] = ("sgd", "adamw")
    lr: tuple[float, ...] = (3e-4,)

    def __post_init__(self):
        if not self.names or (unknown := sorted(set(self.names) - set(PROBES))):
            raise ConfigError(
                f"optim.names: {unknown if self.names else 'nothing'} given; choose from {', '.join(PROBES)}"
            )
        if not self.lr or min(self.lr) <= 0:
            raise ConfigError(f"optim.lr={list(self.lr)}: one or more positive learning rates")


@dataclass(frozen=True)
class FidelityConfig:
    """The study.

    seeds: of initialisation, batches and target. steps: training steps done before the valued one. players: samples of the valued batch. permutations: most
    orders of the sampled truth, 0 to enumerate. block: tokens of a sample. val_chunks: samples of the target, over all domains.
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

    def __post_init__(self):
        if not self.seeds or not self.steps or min(self.steps) < 1:
            raise ConfigError("seeds and steps must not be empty, and steps are 1 or more")
        if not 2 <= self.players <= (64 if self.permutations else 12):
            raise ConfigError(f"players={self.players}: 2 to 12 to enumerate; more need permutations > 0")
        if not 1 <= self.block <= self.data.block_size:
            raise ConfigError(f"block={self.block} must be 1 to data.block_size={self.data.block_size}")

    @classmethod
    def from_mapping(cls, values: dict[str, Any]) -> "FidelityConfig":
        """Strict; one learning rate may stand where a list does, so that `-m optim.lr=...` sweeps it."""
        lr = values["optim"]["lr"]
        listed = [lr] if isinstance(lr, (int, float)) else lr
        return build(cls, {**values, "optim": {**values["optim"], "lr": listed}})

    def digest(self) -> str:
        """Of everything that the result depends on."""
        return _digest({k: v for k, v in dataclasses.asdict(self).items() if k not in ("name", "runs", "data_root")})


def main(config: DictConfig) -> None:
    console = Console(stderr=True)
    settings = FidelityConfig.from_mapping(plain(config))
    name = settings.name or f"{time.strftime('%Y-%m-%d-%H%M%S')}-{settings.digest()}"
    folder = Path(settings.runs) / name
    if folder.exists():
        raise ConfigError(f"{folder} exists already; choose another name=..., or delete it")
    rows, points = [], []
    total = len(settings.seeds) * len(settings.steps) * len(settings.optim.names) * len(settings.optim.lr)
    for seed in settings.seeds:
        run = trained(settings, seed, console)
        for step in settings.steps:
            study = Study(run, step, seed, settings.players, settings.permutations, settings.block, settings.val_chunks)
            for optimizer in settings.optim.names:
                seconds = costs(study, optimizer)
                for lr in settings.optim.lr:
                    began = time.monotonic()
                    where = {"seed": seed, "train_steps": step, "optimizer": optimizer, "lr": lr}
                    with _progress(console, f"seed {seed}, step {step}, {optimizer}, lr {lr:g}") as report:
                        found, scatter = compare(study, optimizer, lr, seconds, report)
                    rows += [{**where, **row} for row in found]
                    points += [{**where, **point} for point in scatter]
                    errors = [f"{r['method']} {r['relative_rmse']:.2g}" for r in found if r["quantity"] == "values"]
                    done = len({(p["seed"], p["train_steps"], p["optimizer"], p["lr"]) for p in points})
                    console.print(
                        f"[{done}/{total}] seed {seed}, step {step}, {optimizer}, lr {lr:g}, {time.monotonic() - began:.0f} s; "
                        f"RMSE / spread: {', '.join(errors)}",
                        highlight=False,
                        markup=False,
                        soft_wrap=True,
                    )
    about = {
        "scale": settings.scale,
        "players": settings.players,
        "block": settings.block,
        "parameters": run.model.num_parameters(),
        "config_digest": settings.digest(),
        "git_revision": git_revision() or "unknown",
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(settings), indent=2) + "\n", encoding="utf-8")
    print(write_report(folder, [{**row, **about} for row in rows], points))
    console.print(f"done: {folder}", highlight=False, soft_wrap=True)


def trained(settings: FidelityConfig, seed: int, console: Console) -> Run:
    """The training run of a seed, with a checkpoint at every one of `settings.steps`; an earlier study's run is used again."""
    train = dataclasses.replace(
        settings.train, steps=max(settings.steps), checkpoint_every=math.gcd(*settings.steps), keep=10**6
    )
    config = RunConfig(
        name=f"seed-{seed}",
        model=settings.model,
        data=settings.data,
        optim=settings.train_optim,
        train=train,
        data_root=settings.data_root,
        seed=seed,
    )
    about = config.to_mapping()
    del about["data_root"], about["runs"]
    config = dataclasses.replace(config, runs=str(Path(settings.runs) / "trained" / _digest(about)))
    folder = Path(config.runs) / config.name
    run = Run.resume(folder, console) if folder.exists() else Run.start(config, console)
    if run.step < train.steps:
        console.print(f"seed {seed}: training to step {train.steps}", highlight=False)
    run.train()
    return run


@contextmanager
def _progress(console: Console, label: str) -> Iterator[Callable[[int], None]]:
    """Shows the number of coalitions: a live line on a terminal, a plain one twice a minute elsewhere."""
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


def _digest(about: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:8]


if __name__ == "__main__":
    command("fidelity", main)
