"""Curation: score a run, drop the chunks that values call harmful, train again, and see how much
sooner the same test loss is reached. `make curation`.

The paper's section 5.3.1 with the controls that it lacks. For every seed (corpus, initial weights
and order of chunks all follow from it):

    full      trains on everything, with values towards the target; what the others are measured against
    <method>  trains on the chunks whose value by that method is not negative
    high_loss, low_loss    trains without as many chunks, those of the highest (lowest) training loss in the same steps
    influence trains without as many chunks, those of the lowest influence on the target at the final weights (EK-FAC)
    random    trains without as many chunks, drawn by chance
    <method>-50, random-50    train without this share of the measured chunks (`shares`), the lowest valued or drawn by chance
    online    one run that stops drawing chunks with negative values on the way (`inrun.train.online`)
    clean     trains without the planted noise and the foreign domains: what perfect knowledge of the labels would give

All have the same weights to begin with, the same number of steps and the same settings; test losses
are on clean chunks of the target's domains that neither training nor the target has seen.
"""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import DictConfig
from rich.console import Console

from experiments import artifacts as outputs
from experiments.artifacts import Outputs
from experiments.curation.report import (
    FOREIGN,
    USEFUL,
    kind_rows,
    plot_curves,
    run_row,
    score_row,
    summary,
    test_curve,
)
from experiments.frame import command, plain
from experiments.study import LanguageStudy, measured_once
from inrun.baselines import score
from inrun.baselines.language import LanguageRun
from inrun.config import build
from inrun.data.corpus import Corpus
from inrun.store import ValueStore
from inrun.train import (
    AttributionConfig,
    ChunkSelection,
    ConfigError,
    LogConfig,
    OnlineConfig,
    RunConfig,
    mean_chunk_losses,
    train_or_reuse,
    write_chunks,
)
from inrun.train.online import decide

CONTROLS = ("high_loss", "low_loss", "influence", "random", "online", "clean")
#: keys of the config that choose among training runs and change none of them
CHOICES = ("scale", "seeds", "controls", "retrain", "shares", *outputs.PLACES)


@dataclass(frozen=True, kw_only=True)
class CurationConfig(LanguageStudy):
    """The study. One target; the first method decides how many chunks the controls leave out.

    seeds: of corpus (if `new_corpus`), weights and order. controls: which of `CONTROLS` are
    trained. retrain: which methods' values are (empty: all). shares: what the first method's values
    also leave out, beside the negative ones. since: share of the run's steps whose values do not
    count. unit: of `inrun.store.ValueStore.means`. foreign: domains that are fluent text but of no
    use to the target. influence: options of `inrun.baselines.ekfac`. online: when values begin to
    decide what the control `online` draws.
    """

    online: OnlineConfig = field(default_factory=OnlineConfig)
    seeds: tuple[int, ...] = (0, 1, 2)
    controls: tuple[str, ...] = CONTROLS
    retrain: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()
    foreign: tuple[str, ...] = ()
    influence: dict[str, Any] = field(default_factory=dict)
    new_corpus: bool = True
    since: float = 0.0
    unit: str = "step"
    log_every: int = 50
    runs: str = "runs/curation"

    def __post_init__(self):
        methods = [method.name for method in self.attribution.method]
        demands = [
            (bool(self.seeds), "seeds must not be empty"),
            (
                not set(self.controls) - set(CONTROLS),
                f"controls must be among {CONTROLS}, got {self.controls}",
            ),
            (
                len(self.attribution.targets) == 1,
                "curation is for one target; make another study for another one",
            ),
            (bool(methods), "values are needed: attribution=off makes no sense here"),
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
        ]
        for holds, message in demands:
            if not holds:
                raise ConfigError(f"curation: {message}")

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


def main(config: DictConfig) -> None:
    console = Console(stderr=True)
    given = plain(config)
    settings = build(CurationConfig, given)
    out = Outputs.open(settings.runs, given, settings.name)
    shared = (
        Path(settings.runs)
        / "trained"
        / outputs.digest({key: given[key] for key in given if key not in CHOICES})
    )

    def study() -> None:
        arms = [
            (seed, arm)
            for seed in settings.seeds
            for arm in Study(settings, shared, seed, console).arms()
        ]
        write_report(out, settings, arms)

    measured_once(
        out,
        study,
        settings.record,
        console,
        "curation",
        {"curation": "curation", "curation-kinds": "kinds"},
    )


@dataclass(frozen=True)
class Arm:
    """A finished training run of the study, its test curve (iterations, losses), its row and the
    rows of its kinds.
    """

    name: str
    curve: tuple[np.ndarray, np.ndarray]
    row: dict
    kinds: list[dict]


def write_report(out: Outputs, settings: CurationConfig, arms: list[tuple[int, Arm]]) -> None:
    """curation (its markdown is the report), kinds, and the figure; arms: with the seed of each."""
    where = {
        "scale": settings.scale,
        "model": settings.model["name"],
        "target": settings.attribution.targets[0].name,
    }
    rows = [{**where, **arm.row} for _, arm in arms]
    kinds = [{**where, **row} for _, arm in arms for row in arm.kinds]
    about = [
        f"{settings.scale}: {settings.model['name']}-{settings.model['preset']}, "
        f"{settings.train.steps} steps of {settings.train.batch_size} chunks of "
        f"{settings.data.block_size} tokens; target {settings.attribution.targets[0].name}; "
        f"values of the last {1 - settings.since:.0%} of the steps."
    ]
    out.table("curation", rows, summary(rows, kinds, about))
    out.table("kinds", kinds)
    out.figure("curation", plot_curves({(seed, arm.name): arm.curve for seed, arm in arms}, kinds))


class Study:
    """All training runs of one seed, in `folder`, which studies with the same settings share."""

    def __init__(self, settings: CurationConfig, folder: Path, seed: int, console: Console):
        self.settings, self.folder, self.seed, self.console = settings, folder, seed, console
        self.full = self._train("full")
        about = json.loads((self.full / "run.json").read_text(encoding="utf-8"))
        self.corpus = Corpus.open(about["corpus"])
        self.first = int(settings.since * settings.train.steps)
        table = self.corpus.chunks
        self.domains, kinds = (
            table[name].to_numpy(zero_copy_only=False).astype(str) for name in ("domain", "kind")
        )
        clean = np.where(np.isin(self.domains, settings.foreign), FOREIGN, USEFUL)
        self.labels = np.where(kinds == "clean", clean, kinds)

    def arms(self) -> Iterator[Arm]:
        settings = self.settings
        scores, negative = self.scores()
        size = int((scores[settings.attribution.method[0].name] < 0).sum())
        full = test_curve(self.full)
        nobody = np.array([], dtype=np.int64)
        yield Arm(
            "full", full, run_row(self.seed, "full", full, full, nobody, len(self.corpus)), []
        )
        for name, values in scores.items():
            dropped = np.flatnonzero(values < 0) if name in negative else _lowest(values, size)
            if name in negative and settings.retrain and name not in settings.retrain:
                continue
            found = {
                **score_row(values, dropped, self.labels),
                "negative_share": negative.get(name),
            }
            yield self._arm(name, dropped, values, found)
        measured = int((~np.isnan(scores[settings.attribution.method[0].name])).sum())
        for share in settings.shares:
            for name in (
                settings.attribution.method[0].name,
                *({"random"} & set(settings.controls)),
            ):
                dropped = _lowest(scores[name], round(share * measured))
                found = score_row(scores[name], dropped, self.labels)
                yield self._arm(f"{name}-{share:.0%}".rstrip("%"), dropped, scores[name], found)
        if "clean" in settings.controls:
            yield self._arm("clean", np.flatnonzero(self.labels != USEFUL))
        if "online" in settings.controls:
            yield self._online(full)

    def scores(self) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """Name -> one number per chunk, low is suspect, nan for a chunk that was never drawn; and
        the methods' shares of negative values over the whole run.
        """
        settings, target = self.settings, self.settings.attribution.targets[0].name
        with ValueStore(self.full / "values") as store:
            found = {
                m: self._by_chunk(store.means(target, m, self.first, unit=settings.unit))
                for m in store.methods
            }
            negative = {m: store.negative_share(target, m) for m in store.methods}
        losses = self._by_chunk(mean_chunk_losses(self.full, self.first))
        found |= {
            name: score
            for name, score in (("high_loss", -losses), ("low_loss", losses))
            if name in settings.controls
        }
        if "influence" in settings.controls:
            found["influence"] = self._by_chunk(self._influence(target))
        if "random" in settings.controls:
            found["random"] = (
                np.random.default_rng(self.seed).permutation(len(self.corpus)).astype(np.float64)
            )
        return found, negative

    def _influence(self, target: str) -> pa.Table:
        """sample_id, value; computed once and kept in the study's folder."""
        kept = self.folder / f"seed-{self.seed}-influence.parquet"
        if not kept.is_file():
            self.console.print(f"seed {self.seed}: influence functions", highlight=False)
            scored = score(
                LanguageRun(self.full), target, "influence_ekfac", **self.settings.influence
            )
            outputs.whole(kept, lambda path: pq.write_table(scored.table, path))
        return pq.read_table(kept)

    def _arm(
        self,
        name: str,
        dropped: np.ndarray,
        score: np.ndarray | None = None,
        found: dict | None = None,
    ) -> Arm:
        chunks = self.folder / "chunks" / f"seed-{self.seed}-{name}.parquet"
        write_chunks(chunks, np.setdiff1d(np.arange(len(self.corpus)), dropped))
        curve = test_curve(self._train(name, chunks))
        row = run_row(self.seed, name, curve, test_curve(self.full), dropped, len(self.corpus))
        return Arm(
            name,
            curve,
            {**row, **(found or {})},
            kind_rows(self.seed, name, score, dropped, self.labels, self.domains),
        )

    def _online(self, full: tuple[np.ndarray, np.ndarray]) -> Arm:
        """What was left out is what the last decision left out."""
        folder = self._train("online")
        online, steps = self.settings.online, self.settings.train.steps
        with ValueStore(folder / "values") as store:
            everything = ChunkSelection(np.arange(len(self.corpus)))
            kept = decide(online, online.decision(steps - 1), store, everything).ids
        dropped = np.setdiff1d(everything.ids, kept)
        curve = test_curve(folder)
        row = run_row(self.seed, "online", curve, full, dropped, len(self.corpus))
        return Arm(
            "online",
            curve,
            row,
            kind_rows(self.seed, "online", None, dropped, self.labels, self.domains),
        )

    def _train(self, arm: str, chunks: Path | None = None) -> Path:
        self.console.print(f"seed {self.seed}: {arm}", highlight=False)
        return train_or_reuse(self.settings.run(self.folder, self.seed, arm, chunks), self.console)

    def _by_chunk(self, table: pa.Table) -> np.ndarray:
        """float64 [chunks of the corpus]: the column `value`, nan where there is no row."""
        found = np.full(len(self.corpus), np.nan)
        found[table["sample_id"].to_numpy()] = table["value"].to_numpy()
        return found


def _lowest(score: np.ndarray, count: int) -> np.ndarray:
    """Ids of the `count` lowest scores, ascending; what was never measured (nan) comes last."""
    return np.sort(np.argsort(score, kind="stable")[:count])


if __name__ == "__main__":
    command("curation", main)
