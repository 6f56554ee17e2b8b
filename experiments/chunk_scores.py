"""Scores of training chunks: values of the run, influence functions, search, chance.

A chunk's value is summed over the steps that it took part in, and the steps are not alike: early
ones move the loss more, whatever they read. So values are also compared with the order of training
taken out: in each step they are standardised (less their mean, over their standard deviation), then
summed (`..._in_step`). That is no Shapley value of anything any more, and is shown as what it is,
another score.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from inrun.baselines.ekfac import EKFAC, EKFACOptions
from inrun.baselines.language import LanguageRun
from inrun.baselines.text import BM25Index, BM25Options, EmbeddingIndex, EmbeddingOptions
from inrun.store import ValueStore, sql_text

TITLES = {
    "paper": "first order, SGD formula (the paper's)",
    "first_order": "first order, AdamW",
    "second_order": "second order, AdamW",
    "path": "path, AdamW",
    "paper_in_step": "first order, SGD formula, standardised in each step",
    "first_order_in_step": "first order, AdamW, standardised in each step",
    "second_order_in_step": "second order, AdamW, standardised in each step",
    "path_in_step": "path, AdamW, standardised in each step",
    "influence": "influence function (EK-FAC)",
    "bm25": "BM25",
    "embedding": "embedding search",
    "random": "random",
}


def all_scores(
    run: LanguageRun, targets: Sequence[str], influence: EKFACOptions, seed: int
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """(method, target -> score of every chunk [n] in the order of run.sample_ids), method after
    method; those of the run's store first.
    """
    with run.files.values() as store:
        for method in store.methods:
            yield (
                method,
                {target: store.values(target, method)["value"].to_numpy() for target in targets},
            )
        for method in store.methods:
            yield (
                f"{method}_in_step",
                {target: in_step(store, target, method) for target in targets},
            )
    yield "influence", EKFAC(run, influence).values(targets)
    words = BM25Index(run, BM25Options())
    yield "bm25", {target: words.scores(run.target_texts(target)) for target in targets}
    hidden = EmbeddingIndex(run, EmbeddingOptions())
    yield "embedding", {target: hidden.scores(target) for target in targets}
    dice = np.random.default_rng(seed)
    yield "random", {target: dice.random(len(run.sample_ids)) for target in targets}


def in_step(store: ValueStore, target: str, method: str) -> np.ndarray:
    """Values standardised in each step, summed: float64 [n], by sample_id."""
    rows = store.sql(
        f"""
        WITH v AS (
            SELECT step, sample_id, CAST("{method}" AS DOUBLE) AS value
            FROM terms WHERE target = {sql_text(target)}
        ),
        z AS (
            SELECT
                sample_id,
                (value - avg(value) OVER same) / nullif(stddev_pop(value) OVER same, 0) AS z
            FROM v WINDOW same AS (PARTITION BY step)
        )
        SELECT sample_id, sum(coalesce(z, 0)) AS score FROM z GROUP BY sample_id ORDER BY sample_id
        """
    )
    return rows["score"].to_numpy()
