"""What values lose when they are measured less often: `every=k` (only every k-th step) and
`refresh=k` (the target's gradient of up to k - 1 steps ago). `make sparing`.

The same training is valued in every way; the weights do not depend on it, so that each value has
its counterpart in the run that measures every step with a present gradient.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure
from omegaconf import DictConfig
from rich.console import Console
from scipy.stats import spearmanr

from experiments.artifacts import Outputs
from experiments.frame import command, plain
from experiments.study import LanguageStudy, measured_once
from inrun.config import build
from inrun.store import ValueStore
from inrun.train import ConfigError, LogConfig, RunConfig, train_or_reuse


@dataclass(frozen=True, kw_only=True)
class SparingConfig(LanguageStudy):
    """The study. intervals: the k of `every=k` and `refresh=k`; 1 is measured anyway, as the
    reference.
    """

    intervals: tuple[int, ...]
    seed: int = 0
    runs: str = "runs/sparing"

    def __post_init__(self):
        if not self.attribution.on or any(k < 2 for k in self.intervals):
            raise ConfigError("sparing: values are needed, and intervals of 2 or more")

    def run(self, runs: Path, name: str, **option: int) -> RunConfig:
        attribution = replace(self.attribution, ledger=0, **option)
        return self.run_config(
            runs, name, attribution=attribution, log=LogConfig(every=100), seed=self.seed
        )


def main(config: DictConfig) -> None:
    console = Console(stderr=True)
    given = plain(config)
    settings = build(SparingConfig, given)
    out = Outputs.open(settings.runs, given, settings.name)

    def measure() -> None:
        rows = measured(settings, out.folder / "trained", console)
        out.table("sparing", rows)
        out.figure("sparing", plot_losses_kept(rows))

    measured_once(out, measure, settings.record, console, "sparing")


def measured(settings: SparingConfig, runs: Path, console: Console) -> list[dict]:
    """One row for each option, interval, target and method, beside the run that measures everything
    at every step.
    """
    reference = _values(train_or_reuse(settings.run(runs, "reference"), console))
    rows = []
    for option in ("refresh", "every"):
        for k in settings.intervals:
            found = _values(
                train_or_reuse(settings.run(runs, f"{option}-{k}", **{option: k}), console)
            )
            for key, truth in reference.items():
                where = {
                    "scale": settings.scale,
                    "option": option,
                    "k": k,
                    "target": key[0],
                    "method": key[1],
                }
                rows.append({**where, **compare(found[key], truth)})
    return rows


def _values(run: Path) -> dict[tuple[str, str], pa.Table]:
    """(target, method) -> step, sample_id, domain, value of every measurement, in order."""
    with ValueStore(run / "values") as store:
        return {
            (target, method): store.sql(
                f'SELECT t.step, t.sample_id, s.domain, CAST(t."{method}" AS DOUBLE) AS '
                "value FROM terms t JOIN samples s USING (sample_id) "
                f"WHERE t.target = '{target}' ORDER BY t.step, t.sample_id"
            )
            for target in store.targets
            for method in store.methods
        }


def compare(found: pa.Table, truth: pa.Table) -> Mapping[str, float]:
    """Spearman correlations with the values of every step: among the samples of a step (mean over
    the steps that both have and where values differ), of the samples' and of the domains' means per
    use.
    """
    by_step = {
        step: _column(truth, truth["step"].to_numpy() == step)
        for step in np.unique(found["step"].to_numpy())
    }
    own = {step: _column(found, found["step"].to_numpy() == step) for step in by_step}
    # before Adam has a state its frozen slope is 0, and so are all values: there is no order to
    # keep
    within = [
        spearmanr(own[step], by_step[step]).statistic
        for step in by_step
        if np.ptp(by_step[step]) and np.ptp(own[step])
    ]
    return {
        "within_step": float(np.mean(within)),
        "samples": _rank_agreement(found, truth, "sample_id"),
        "domains": _rank_agreement(found, truth, "domain"),
        "measured": len(found) / len(truth),
    }


def _column(table: pa.Table, where: np.ndarray) -> np.ndarray:
    return table["value"].to_numpy()[where]


def _rank_agreement(found: pa.Table, truth: pa.Table, group: str) -> float:
    both = [table.group_by(group).aggregate([("value", "mean")]) for table in (found, truth)]
    joined = both[0].join(both[1], group, join_type="inner", right_suffix="_true")
    return float(
        spearmanr(joined["value_mean"].to_numpy(), joined["value_mean_true"].to_numpy()).statistic
    )


def plot_losses_kept(rows: list[dict]) -> Figure:
    """Spearman within a step (refresh) and of the domains' means (both options) against k."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for place, (option, column) in zip(
        figure.subplots(1, 3, sharey=True),
        (("refresh", "within_step"), ("refresh", "domains"), ("every", "domains")),
    ):
        for target, method in dict.fromkeys((r["target"], r["method"]) for r in rows):
            mine = [
                r
                for r in rows
                if (r["option"], r["target"], r["method"]) == (option, target, method)
            ]
            place.plot(
                [r["k"] for r in mine],
                [r[column] for r in mine],
                marker="o",
                label=f"{target}, {method}",
            )
        place.set(title=f"{option}=k, {column.replace('_', ' ')}", xlabel="k", xscale="log")
        place.set_xticks([r["k"] for r in mine], [str(r["k"]) for r in mine], minor=False)
    figure.axes[0].set_ylabel("Spearman with values of every step")
    figure.axes[0].legend(fontsize="small")
    return figure


if __name__ == "__main__":
    command("sparing", main)
