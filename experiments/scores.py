"""What every experiment that finds training chunks compares: values of the run, influence functions, search, chance."""

from collections.abc import Iterator, Sequence

import numpy as np

from inrun.baselines.ekfac import EKFAC, EKFACOptions
from inrun.baselines.language import LanguageRun
from inrun.baselines.text import BM25Index, BM25Options, EmbeddingIndex, EmbeddingOptions
from inrun.store import ValueStore

TITLES = {
    "paper": "first order, SGD formula (the paper's)",
    "first_order": "first order, AdamW",
    "second_order": "second order, AdamW",
    "path": "path, AdamW",
    "influence": "influence function (EK-FAC)",
    "bm25": "BM25",
    "embedding": "embedding search",
    "random": "random",
}


def all_scores(
    run: LanguageRun, targets: Sequence[str], influence: EKFACOptions, seed: int
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """(method, target -> score of every chunk [n] in the order of run.sample_ids), method after method; those of the run's store first."""
    with ValueStore(run.folder / "values") as store:
        for method in store.methods:
            yield method, {target: store.values(target, method)["value"].to_numpy() for target in targets}
    yield "influence", EKFAC(run, influence).values(targets)
    words = BM25Index(run, BM25Options())
    yield "bm25", {target: words.scores(run.target_texts(target)) for target in targets}
    hidden = EmbeddingIndex(run, EmbeddingOptions())
    yield "embedding", {target: hidden.scores(target) for target in targets}
    dice = np.random.default_rng(seed)
    yield "random", {target: dice.random(len(run.sample_ids)) for target in targets}
