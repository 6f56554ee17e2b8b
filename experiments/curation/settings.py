"""Settings of the curation study, and the training run of each arm."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.frame import LanguageStudy
from inrun.config import require
from inrun.train import AttributionConfig, LogConfig, OnlineConfig, RunConfig

CONTROLS = ("high_loss", "low_loss", "influence", "random", "online", "clean")


@dataclass(frozen=True, kw_only=True)
class CurationConfig(LanguageStudy):
    """The study. One target; the first method decides how many chunks the controls leave out."""

    online: OnlineConfig = field(default_factory=OnlineConfig)
    """when values begin to decide what the control `online` may be trained on"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """of corpus (if new_corpus), weights and order"""
    controls: tuple[str, ...] = CONTROLS
    """which controls are trained"""
    retrain: tuple[str, ...] = ()
    """which methods' values are trained on; empty: all"""
    shares: tuple[float, ...] = ()
    """what the first method's values also leave out, beside the negative ones"""
    foreign: tuple[str, ...] = ()
    """domains that are fluent text but of no use to the target"""
    influence: dict[str, Any] = field(default_factory=dict)
    """options of inrun.baselines.ekfac"""
    new_corpus: bool = True
    """a corpus of its own for each seed"""
    since: float = 0.0
    """share of the run's steps whose values do not count"""
    unit: str = "step"
    """of inrun.store.ValueStore.means"""
    log_every: int = 50
    """steps between two lines of the runs' logs"""
    runs: str = "runs/curation"

    def __post_init__(self):
        methods = [method.name for method in self.attribution.method]
        require(
            "curation",
            (self.seeds, "seeds must not be empty"),
            (
                not set(self.controls) - set(CONTROLS),
                f"controls must be among {CONTROLS}, got {self.controls}",
            ),
            (
                len(self.attribution.targets) == 1,
                "curation is for one target; make another study for another one",
            ),
            (methods, "values are needed: attribution=off makes no sense here"),
            (
                not set(self.retrain) - set(methods),
                f"retrain must be among the methods {methods}, got {self.retrain}",
            ),
            (
                all(0 < share < 1 for share in self.shares),
                f"shares={list(self.shares)}: each between 0 and 1",
            ),
            (0 <= self.since < 1, f"since={self.since} is a share of the run, 0 to below 1"),
            (
                "online" not in self.controls or self.online.start > 0,
                "the control online needs online.start",
            ),
        )

    @property
    def deciding(self) -> str:
        """The method whose negative values count."""
        return self.attribution.method[0].name

    def run(self, runs: Path, seed: int, arm: str, chunks: Path | None = None) -> RunConfig:
        """The training run of an arm: attribution where it is measured, everything else equal."""
        train = dataclasses.replace(self.train, chunks=str(chunks or ""))
        measured = arm in ("full", "online")
        attribution = self.attribution
        if arm == "online":  # one method decides; the others would only cost time
            deciding = self.online.method or attribution.method[0].name
            attribution = dataclasses.replace(
                attribution, method=tuple(m for m in attribution.method if m.name == deciding)
            )
        return self.run_config(
            runs,
            f"seed-{seed}-{arm}",
            data=dataclasses.replace(self.data, seed=seed) if self.new_corpus else self.data,
            train=train,
            attribution=attribution if measured else AttributionConfig(),
            online=self.online if arm == "online" else OnlineConfig(),
            log=LogConfig(every=self.log_every, chunk_losses=arm == "full"),
            seed=seed,
        )
