"""The training runs of one seed of the curation study."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from experiments.curation.rows import FOREIGN, USEFUL, kind_rows, run_row, score_row, test_curve
from experiments.curation.settings import CurationConfig
from inrun.baselines import score
from inrun.baselines.language import LanguageRun
from inrun.files import write_file
from inrun.train import ChunkSelection, RunFolder, mean_chunk_losses, train_or_reuse, write_chunks
from inrun.train.online import decide


@dataclass(frozen=True)
class Arm:
    """A finished training run of the study, its test curve (iterations, losses), its row and the
    rows of its kinds.
    """

    name: str
    curve: tuple[np.ndarray, np.ndarray]
    row: dict
    kinds: list[dict]


class CurationRuns:
    """All training runs of one seed, in `folder`, which studies with the same settings share."""

    def __init__(self, settings: CurationConfig, folder: Path, seed: int, console: Console):
        self.settings, self.folder, self.seed, self.console = settings, folder, seed, console
        self.full = self._train("full")
        self.corpus = RunFolder(self.full).corpus()
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
        size = int((scores[settings.deciding] < 0).sum())
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
        measured = int((~np.isnan(scores[settings.deciding])).sum())
        for share in settings.shares:
            for name in (
                settings.deciding,
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
        """Name -> one number per chunk, low is suspect, nan for a chunk that was never used; and
        the methods' shares of negative values over the whole run.
        """
        settings, target = self.settings, self.settings.attribution.targets[0].name
        with RunFolder(self.full).values() as store:
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
            write_file(kept, functools.partial(pq.write_table, scored.table))
        return pq.read_table(kept)

    def _arm(
        self,
        name: str,
        dropped: np.ndarray,
        score: np.ndarray | None = None,
        found: dict | None = None,
    ) -> Arm:
        chunks = self.folder / "chunks" / f"seed-{self.seed}-{name}.parquet"
        kept = np.setdiff1d(np.arange(len(self.corpus)), dropped)
        write_chunks(chunks, kept, corpus=self.corpus.whole_digest)
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
        with RunFolder(folder).values() as store:
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
