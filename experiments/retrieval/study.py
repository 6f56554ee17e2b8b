"""Finding the training chunks of a domain by the values of its validation chunks.

Paper: Wang et al. 2025, appendix E.5.1, table 3. For every domain a few of its validation chunks
are the target; the figure is the recall of the domain's training chunks among the k best, over that
of a random choice (`inrun.evaluate.recall_at_k`: 1 is chance). One run with a target for each
domain.

  python -m experiments retrieval                      the 13 domains of the offline corpus
  python -m experiments retrieval chunks=8 k=[100]     larger targets, one k
  python -m experiments retrieval scale=paper          GPT-2 124M on the Pile: needs a GPU
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from experiments.artifacts import Outputs
from experiments.chunk_scores import all_scores
from experiments.frame import LanguageStudy, study
from experiments.retrieval.report import report
from inrun.baselines.ekfac import EKFACOptions
from inrun.baselines.language import LanguageRun
from inrun.config import ConfigError
from inrun.data.corpus import Corpus
from inrun.data.prepare import prepare
from inrun.evaluate import recall_at_k
from inrun.progress import live_line
from inrun.train import RunConfig, TargetConfig, train_or_reuse


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig(LanguageStudy):
    """The study. The targets of `attribution` are the domains, whatever stands there."""

    chunks: int
    """validation chunks of a domain's target"""
    k: tuple[int, ...]
    """how many of the best chunks are looked at; the last one is shown"""
    influence: EKFACOptions = field(default_factory=EKFACOptions)
    """the influence function"""
    seed: int = 0
    """of weights, order and the random scores"""

    def __post_init__(self):
        if not self.k or min(self.k) < 1 or self.chunks < 1:
            raise ConfigError("k and chunks must be 1 or more")


@study("retrieval", RetrievalConfig, report)
def measure(settings: RetrievalConfig, out: Outputs, console: Console) -> None:
    """One row for each domain, method and k."""
    with live_line(console, "reading") as progress:
        corpus = prepare(settings.data, settings.data_root, progress)
    folder = train_or_reuse(run_config(settings, corpus, out.folder), console)
    console.print("recall", highlight=False)
    out.table("retrieval", list(recalls(settings, LanguageRun(folder))))


def run_config(settings: RetrievalConfig, corpus: Path, folder: Path) -> RunConfig:
    """The run: a target for every domain that has enough validation chunks."""
    validation = Corpus.open(corpus, "val")
    targets = tuple(
        TargetConfig(domain, domains=(domain,), chunks=settings.chunks)
        for domain in validation.domains
        if len(validation.ids(domain=domain)) >= settings.chunks
    )
    attribution = dataclasses.replace(settings.attribution, targets=targets)
    return settings.run_config(folder, "run", attribution=attribution, seed=settings.seed)


def recalls(settings: RetrievalConfig, run: LanguageRun) -> Iterator[dict]:
    """Normalised recall of every domain, method and k."""
    chunks = run.corpus.chunks.take(run.sample_ids)
    domains = chunks["domain"].to_numpy(zero_copy_only=False)
    pile_like = dict(zip(domains, chunks["pile_like"].to_pylist()))
    present = [target for target in run.targets if (domains == target).any()]
    for method, scores in all_scores(run, present, settings.influence, settings.seed):
        for target in present:
            relevant = domains == target
            for k in settings.k:
                yield {
                    "scale": settings.scale,
                    "seed": settings.seed,
                    "domain": target,
                    "pile_like": pile_like[target],
                    "method": method,
                    "k": k,
                    "recall": recall_at_k(scores[target], relevant, k),
                    "largest": 1 / max(relevant.mean(), k / len(relevant)),
                    "relevant": int(relevant.sum()),
                    "chunks": len(relevant),
                }
