"""What values lose when they are measured less often.

`every=k` measures only every k-th step, `refresh=k` takes the target's gradient of up to k - 1
steps ago. The same training is valued in every way; the weights do not depend on it, so that each
value has its counterpart in the run that measures every step with a present gradient.

  python -m experiments intervals              a small GPT-2, minutes on 2 cores
  python -m experiments intervals k=[2,32]

A killed study goes on where it was.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.console import Console
from scipy.stats import spearmanr

from experiments.artifacts import Outputs
from experiments.frame import LanguageStudy, study
from experiments.intervals.report import report
from inrun.config import ConfigError
from inrun.store import sql_text
from inrun.train import LogConfig, RunConfig, RunFolder, train_or_reuse


@dataclass(frozen=True, kw_only=True)
class IntervalsConfig(LanguageStudy):
    """The study."""

    k: tuple[int, ...]
    """of `every=k` and `refresh=k`; 1 is measured anyway, as the reference"""
    seed: int = 0
    """of weights and order"""
    runs: str = "runs/intervals"

    def __post_init__(self):
        if not self.attribution.on or any(k < 2 for k in self.k):
            raise ConfigError("intervals: values are needed, and intervals of 2 or more")

    def run(self, runs: Path, name: str, every: int = 1, refresh: int = 1) -> RunConfig:
        """The same training, valued less often."""
        how_often = replace(self.attribution.intervals, ledger=0, refresh=refresh)
        attribution = replace(self.attribution, every=every, intervals=how_often)
        return self.run_config(
            runs, name, attribution=attribution, log=LogConfig(every=100), seed=self.seed
        )


@study("intervals", IntervalsConfig, report)
def measure(settings: IntervalsConfig, out: Outputs, console: Console) -> None:
    """One row for each option, interval, target and method, beside the run that measures everything
    at every step.
    """
    runs = out.folder / "trained"
    reference = _values(train_or_reuse(settings.run(runs, "reference"), console))
    rows = []
    for option in ("refresh", "every"):
        for k in settings.k:
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
    out.table("intervals", rows)


def _values(run: Path) -> dict[tuple[str, str], pa.Table]:
    """(target, method) -> step, sample_id, domain, value of every measurement, in order."""
    with RunFolder(run).values() as store:
        return {
            (target, method): store.sql(
                f'SELECT t.step, t.sample_id, s.domain, CAST(t."{method}" AS DOUBLE) AS '
                "value FROM terms t JOIN samples s USING (sample_id) "
                f"WHERE t.target = {sql_text(target)} ORDER BY t.step, t.sample_id"
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
