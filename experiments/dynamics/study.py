"""Value dynamics: which domains carry a target's progress, and when; what the optimizer does by
itself. `make dynamics`.

The paper's section 5.3.2 (figures 3 and 11) with several targets, a mathematics text among them,
and with what its figures lack: values for each unit of progress, and the books of every phase: loss
drop = drift + values + residual.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from omegaconf import DictConfig
from rich.console import Console

from experiments.artifacts import Outputs, markdown
from experiments.frame import command, plain
from experiments.study import LanguageStudy, measured_once
from inrun.config import build
from inrun.store import ValueStore, dynamics, ledger_over
from inrun.train import ConfigError, LogConfig, RunConfig, train_or_reuse

PHASES = ("early", "middle", "late")


@dataclass(frozen=True, kw_only=True)
class DynamicsConfig(LanguageStudy):
    """The study. seeds: one training run each. bins: of equally many steps, for the curves; phases
    are thirds of the run. The first method is shown.
    """

    seeds: tuple[int, ...] = (0,)
    bins: int = 20
    log_every: int = 50
    runs: str = "runs/dynamics"

    def __post_init__(self):
        if not self.seeds or self.bins < len(PHASES):
            raise ConfigError(f"dynamics: seeds must not be empty, bins at least {len(PHASES)}")
        if not self.attribution.on or not self.attribution.intervals.ledger:
            raise ConfigError(
                "dynamics: values and their books are needed; choose an attribution with "
                "ledger >= 1"
            )

    def run(self, runs: Path, seed: int) -> RunConfig:
        return self.run_config(runs, f"seed-{seed}", log=LogConfig(every=self.log_every), seed=seed)


def main(config: DictConfig) -> None:
    console = Console(stderr=True)
    given = plain(config)
    settings = build(DynamicsConfig, given)
    out = Outputs.open(settings.runs, given, settings.name)

    def measure() -> None:
        write_report(out, settings, *measured(settings, out.folder / "trained", console))

    recorded = {"dynamics": "phases", "dynamics-books": "books"}
    measured_once(out, measure, settings.record, console, "books", recorded)


def measured(
    settings: DynamicsConfig, runs: Path, console: Console
) -> tuple[list[dict], list[dict], list[dict]]:
    """Rows of the curves, the phases and the phases' books, of all seeds and targets."""
    method = settings.attribution.method[0].name
    about = {"scale": settings.scale, "model": settings.model["name"], "method": method}
    curves, phases, ledger = [], [], []
    for seed in settings.seeds:
        with ValueStore(train_or_reuse(settings.run(runs, seed), console) / "values") as store:
            for target in store.targets:
                where = {**about, "seed": seed, "target": target}
                curves += [
                    {**where, **row}
                    for row in dynamics(store, "domain", settings.bins, target, method).to_pylist()
                ]
                phases += [
                    {**where, "phase": PHASES[row["bin"]], **row}
                    for row in dynamics(store, "domain", len(PHASES), target, method).to_pylist()
                ]
                ledger += [
                    {**where, "phase": PHASES[row["bin"]], **row}
                    for row in ledger_over(store, len(PHASES), target, method).to_pylist()
                ]
    return curves, phases, ledger


def write_report(
    out: Outputs,
    settings: DynamicsConfig,
    curves: list[dict],
    phases: list[dict],
    ledger: list[dict],
) -> None:
    """dynamics, phases, books (its markdown is the report), and the figure of the first seed."""
    out.table("dynamics", curves)
    out.table("phases", phases)
    out.table("books", ledger, summary(settings, phases, ledger))
    first = [row for row in curves if row["seed"] == settings.seeds[0]]
    out.figure("dynamics", plot_shares(first, list(dict.fromkeys(row["target"] for row in first))))


def summary(settings: DynamicsConfig, phases: list[dict], ledger: list[dict]) -> str:
    """Markdown: the books of each phase, then each domain's share and mean value; means over
    seeds.
    """
    lines = [
        "# Value dynamics",
        "",
        f"{settings.scale}: {settings.model['name']}-{settings.model['preset']}, "
        f"{settings.train.steps} steps of {settings.train.batch_size} chunks, "
        f"{len(settings.seeds)} seed(s). Values in nats of the target's loss; share: of the "
        "positive domains' total in that phase; per use: mean value of a chunk each time it "
        "is used.",
        "",
    ]
    for target in dict.fromkeys(row["target"] for row in ledger):
        mine = [row for row in ledger if row["target"] == target]
        lines += [
            f"## Target {target}",
            "",
            markdown([_books(mine, phase) for phase in PHASES]),
            "",
        ]
        table = []
        for group in dict.fromkeys(row["group"] for row in phases):
            row: dict[str, Any] = {"domain": group}
            for phase in PHASES:
                rows = [
                    r
                    for r in phases
                    if (r["target"], r["group"], r["phase"]) == (target, group, phase)
                ]
                shares = [r["share"] for r in rows if r["share"] is not None]
                row[f"{phase}: share"] = f"{sum(shares) / len(rows):.1%}" if shares else "negative"
                row["per use"] = (
                    row.get("per use", "")
                    + ("; " if "per use" in row else "")
                    + f"{np.mean([r['mean'] for r in rows]):+.1e}"
                )
                drops = [r["per_drop"] for r in rows if r["per_drop"] is not None]
                row["per unit of drop"] = (
                    row.get("per unit of drop", "")
                    + ("; " if "per unit of drop" in row else "")
                    + (f"{np.mean(drops):+.3f}" if drops else "-")
                )
            table.append(row)
        lines += [markdown(sorted(table, key=lambda row: row["domain"])), ""]
    return "\n".join(lines)


def _books(rows: list[dict], phase: str) -> dict:
    mine = [row for row in rows if row["phase"] == phase]
    drop = float(np.mean([row["drop"] for row in mine]))
    found: dict[str, Any] = {
        "phase": phase,
        "steps": f"{mine[0]['first_step']} to {mine[0]['last_step']}",
        "loss drop": drop,
    }
    for key in ("drift", "values", "residual"):
        if any(row[key] is None for row in mine):
            found[key] = "not measured"
        else:
            amount = float(np.mean([row[key] for row in mine]))
            found[key] = f"{amount:+.4f} ({amount / drop:.0%})" if drop > 0 else f"{amount:+.4f}"
    return found


def plot_shares(rows: list[dict], targets: list[str]) -> Figure:
    """Upper row: shares of the positive domains (the paper's figure 3). Middle: mean value for each
    use (figure 11). Lower: value for each unit of loss drop.
    """
    figure = Figure(figsize=(5.2 * len(targets), 10), layout="constrained")
    axes = figure.subplots(3, len(targets), squeeze=False, sharex=True)
    groups = sorted({row["group"] for row in rows})
    for column, target in enumerate(targets):
        mine = [row for row in rows if row["target"] == target]
        lasts = sorted({row["last_step"] for row in mine})
        for key, axis in zip(("share", "mean", "per_drop"), axes[:, column]):
            table = {(row["group"], row["last_step"]): row[key] for row in mine}
            _lines(
                axis,
                key,
                {group: [table.get((group, last)) for last in lasts] for group in groups},
                lasts,
            )
        axes[0, column].set(title=f"target: {target}", ylim=(0, 1))
        axes[2, column].set(xlabel="step")
    for axis, label in zip(
        axes[:, 0],
        ("share of positive domains", "value per use, nats", "value per unit of loss drop"),
    ):
        axis.set_ylabel(label)
    axes[0, -1].legend(
        loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize="small", frameon=False
    )
    return figure


def _lines(axis: Axes, key: str, heights: dict[str, list], lasts: list[int]) -> None:
    if key == "share":
        axis.stackplot(
            lasts,
            [[h or 0.0 for h in row] for row in heights.values()],
            labels=list(heights),
            colors=[f"C{k}" for k in range(10)],
        )
        return
    for number, (group, row) in enumerate(heights.items()):
        axis.plot(
            lasts,
            [np.nan if h is None else h for h in row],
            color=f"C{number % 10}",
            linestyle="-" if number < 10 else "--",
            label=group,
        )
    axis.axhline(0, color="black", linewidth=0.5)
    if key == "mean":
        axis.set_yscale("symlog", linthresh=1e-4)


if __name__ == "__main__":
    command("dynamics", main)
