"""Evaluation losses against a loop over tokens, metrics against their definitions.

Tolerances: 1e-12 where both sides are float64 and differ in the order of a sum; 1e-6 relative where
batches of another size make the float32 forward sum in another order; statistical ones are derived
where they stand.
"""

import itertools
import math

import numpy as np
import pyarrow as pa
import pytest
import torch

from inrun import evaluate, models
from inrun.data.batch import Batch
from inrun.evaluate import (
    auroc,
    bootstrap,
    detection_curve,
    iterations_to,
    pearson,
    recall_at_k,
    relative_rmse,
    spearman,
)


class Chunks:
    """A corpus in memory: ids 100, 103, 106, ... in shuffled rows, so that an id is never its own
    row.
    """

    def __init__(self, n=10, block_size=12, vocab=64):
        rng = np.random.default_rng(0)
        self.rows = {
            int(i): torch.from_numpy(rng.integers(vocab, size=block_size + 1))
            for i in 100 + 3 * np.arange(n)
        }
        ids = rng.permutation(list(self.rows))
        self.domain = {int(i): ("law", "code", "wiki")[i % 3 if i % 2 else 2] for i in ids}
        self.domain |= {int(i): "code" for i in ids[:4]}
        self.chunks = pa.table({"chunk_id": ids, "domain": [self.domain[int(i)] for i in ids]})

    def __getitem__(self, ids):
        return torch.stack([self.rows[int(i)] for i in ids])


def tiny(**overrides):
    shape = {"vocab_size": 64, "block_size": 12, "n_layer": 2, "n_head": 2, "d_model": 32}
    return models.build("gpt2", "tiny", **(shape | overrides))


def evaluated(model, corpus, ids, size, **options):
    chunks = corpus[ids] if ids else torch.zeros(0, 13, dtype=torch.long)
    batches = Batch(chunks[:, :-1], chunks[:, 1:]).split(size)
    return evaluate.evaluate(model, batches, [corpus.domain[i] for i in ids], **options)


def loop(model, corpus, ids):
    """Sum and count of -log p(next token) by domain: one chunk and one token at a time."""
    sums, counts = {}, {}
    model.eval()
    with torch.no_grad():
        for i in ids:
            chunk, domain = corpus.rows[i], corpus.domain[i]
            log_p = model(chunk[None, :-1])[0].double().log_softmax(-1)
            for t, target in enumerate(chunk[1:]):
                sums[domain] = sums.get(domain, 0.0) - log_p[t, target].item()
                counts[domain] = counts.get(domain, 0) + 1
    return sums, counts


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_mean_loss_is_the_sum_over_tokens_by_their_number(batch_size):
    model, corpus = tiny().double(), Chunks()
    ids = [127, 100, 106, 121, 100, 112, 109]
    losses = evaluated(model, corpus, ids, batch_size)
    sums, counts = loop(model, corpus, ids)
    assert len(sums) > 1
    assert losses.counts == counts
    assert losses.tokens == 7 * 12
    assert losses.mean == pytest.approx(sum(sums.values()) / sum(counts.values()), rel=1e-12)
    assert losses.by_domain == pytest.approx({d: sums[d] / counts[d] for d in sums}, rel=1e-12)


def test_float32_losses_do_not_depend_on_the_batch_size():
    model, corpus = tiny(), Chunks()
    ids = list(corpus.rows)
    one, all_at_once = (evaluated(model, corpus, ids, size) for size in (1, 10))
    assert one.mean == pytest.approx(all_at_once.mean, rel=1e-6)
    assert one.by_domain == pytest.approx(all_at_once.by_domain, rel=1e-6)


def test_ignored_targets_are_neither_summed_nor_counted():
    model, corpus = tiny().double(), Chunks()
    chunk = corpus[[100, 103]]
    targets = chunk[:, 1:].clone()
    targets[0, 2:] = models.IGNORED_TARGET
    losses = evaluate.evaluate(model, [Batch(chunk[:, :-1], targets)], ["a", "b"])
    kept = model.loss(chunk[:, :-1], targets, reduction="none")
    assert losses.counts == {"a": 2, "b": 12}
    assert losses.mean == pytest.approx(kept.sum().item() / 14, rel=1e-12)


def test_document_ids_reach_the_model():
    model, corpus = tiny().double(), Chunks()
    chunk = corpus[[100]]
    ids = (torch.arange(12) >= 5).long()[None]
    losses = evaluate.evaluate(model, [Batch(chunk[:, :-1], chunk[:, 1:], ids)], ["a"])
    assert losses.sums["a"] == pytest.approx(
        model.loss(chunk[:, :-1], chunk[:, 1:], document_ids=ids).item(), rel=1e-12
    )
    assert losses.sums["a"] != pytest.approx(
        model.loss(chunk[:, :-1], chunk[:, 1:]).item(), rel=1e-6
    )


def test_evaluating_leaves_modes_gradients_and_random_numbers_alone():
    model, corpus = tiny(dropout=0.5).train(), Chunks()
    model.h[0].drop.eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    first, second = (evaluated(model, corpus, [100, 103], 2) for _ in range(2))
    assert first == second
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()


def test_modes_come_back_after_an_error():
    model = tiny().train()
    with pytest.raises(ValueError, match="block_size=12"):
        evaluate.evaluate(model, [Batch(*[torch.zeros(1, 20, dtype=torch.long)] * 2)], ["a"])
    assert all(module.training for module in model.modules())


def test_there_is_a_domain_for_every_sample():
    model, corpus = tiny(), Chunks()
    batch = Batch(corpus[[100]][:, :-1], corpus[[100]][:, 1:])
    for domains in ([], ["a", "b"]):
        with pytest.raises(ValueError, match=f"1 samples with {len(domains)} domains"):
            evaluate.evaluate(model, [batch], domains)


def test_autocast_computes_in_bf16_and_sums_in_float64():
    """The mean over 36 tokens of losses near log 64 = 4.2: logits of size 0.1 are off by 2^-9 of
    themselves.
    """
    model, corpus = tiny(), Chunks()
    exact, rough = (
        evaluated(model, corpus, [100, 103, 106], 3, autocast=dtype)
        for dtype in (None, torch.bfloat16)
    )
    assert rough.mean != exact.mean
    assert rough.mean == pytest.approx(exact.mean, abs=2**-9)


def test_nothing_to_score_is_an_error():
    model, corpus = tiny(), Chunks()
    with pytest.raises(ValueError, match="at least one chunk"):
        evaluated(model, corpus, [], 2)
    chunk = corpus[[100]]
    with pytest.raises(ValueError, match=r"\['law'\] is ignored"):
        evaluate.evaluate(model, [Batch(chunk[:, :-1], torch.full((1, 12), -100))], ["law"])


def correlated(n=40):
    rng = np.random.default_rng(1)
    truth = rng.normal(size=n)
    return truth + 0.5 * rng.normal(size=n), truth


def test_pearson_is_the_cosine_of_the_centred_arrays():
    values, truth = correlated()
    x, y = values - values.mean(), truth - truth.mean()
    assert pearson(values, truth) == pytest.approx(x @ y / math.sqrt((x @ x) * (y @ y)), rel=1e-12)
    assert pearson(-3 * truth + 7, truth) == pytest.approx(-1, rel=1e-12)


def test_spearman_is_pearson_of_the_ranks():
    values, truth = correlated()
    n = len(values)
    differences = values.argsort().argsort() - truth.argsort().argsort()
    assert spearman(values, truth) == pytest.approx(
        1 - 6 * (differences**2).sum() / (n * (n**2 - 1)), rel=1e-12
    )
    assert spearman(np.exp(truth), truth) == pytest.approx(1, rel=1e-12)
    assert spearman([1, 1, 2], [1, 2, 3]) == pytest.approx(
        pearson([1.5, 1.5, 3], [1, 2, 3]), rel=1e-12
    )


def test_relative_rmse_of_the_mean_is_one():
    values, truth = correlated()
    assert relative_rmse(np.full_like(truth, truth.mean()), truth) == pytest.approx(1, rel=1e-12)
    assert relative_rmse(truth + 0.25 * truth.std(), truth) == pytest.approx(0.25, rel=1e-12)
    assert relative_rmse(10 * values, 10 * truth) == pytest.approx(
        relative_rmse(values, truth), rel=1e-12
    )


def test_auroc_is_the_share_of_pairs_in_the_right_order():
    rng = np.random.default_rng(2)
    scores = rng.integers(6, size=30)
    positive = rng.random(30) < 0.3
    pairs = [(p > q) + 0.5 * (p == q) for p in scores[positive] for q in scores[~positive]]
    assert auroc(scores, positive) == pytest.approx(np.mean(pairs), rel=1e-12)
    assert auroc(-scores, positive) == pytest.approx(1 - np.mean(pairs), rel=1e-12)


@pytest.mark.parametrize("k", range(1, 7))
def test_recall_at_k_is_the_mean_over_all_orders_of_ties(k):
    scores, relevant = np.array([3, 1, 3, 2, 1, 3]), np.array([1, 0, 0, 1, 1, 0])
    by_order = []
    for order in itertools.permutations(range(6)):
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order)):
            recall = relevant[list(order[:k])].sum() / relevant.sum()
            by_order.append(recall / (k / 6))
    assert recall_at_k(scores, relevant, k) == pytest.approx(np.mean(by_order), rel=1e-12)


def test_recall_at_k_reaches_the_inverse_share_at_best():
    relevant = np.arange(100) < 10
    assert recall_at_k(-np.arange(100), relevant, 5) == pytest.approx(10, rel=1e-12)
    assert recall_at_k(-np.arange(100), relevant, 20) == pytest.approx(5, rel=1e-12)
    assert recall_at_k(np.arange(100), relevant, 20) == 0


def test_bootstrap_interval_of_a_mean_is_that_of_the_normal():
    """Half width 1.96 s / sqrt(n). A quantile from 4000 resamples is off by about 4 % of the half
    width: 15 % allowed.
    """
    sample = np.random.default_rng(3).normal(size=400)
    interval = bootstrap(lambda x: float(np.mean(x)), sample, resamples=4000)
    expected = 1.96 * sample.std() / 20
    assert interval.estimate == pytest.approx(sample.mean(), rel=1e-12)
    assert sample.mean() - interval.low == pytest.approx(expected, rel=0.15)
    assert interval.high - sample.mean() == pytest.approx(expected, rel=0.15)
    assert interval.level == 0.95


def test_bootstrap_keeps_pairs_together_and_repeats_with_the_seed():
    values, truth = correlated(200)
    interval = bootstrap(spearman, values, truth, resamples=200)
    assert interval.low < interval.estimate < interval.high
    assert interval.low > 0.5, "resampled apart, the arrays would be uncorrelated"
    assert bootstrap(spearman, values, truth, resamples=200) == interval
    assert bootstrap(spearman, values, truth, resamples=200, seed=1) != interval


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pearson([1, 2, 3], [1, 2]), "one length"),
        (lambda: pearson([[1, 2]], [[1, 2]]), "1-D"),
        (lambda: spearman([1], [1]), "at least 2"),
        (lambda: spearman([1, 2], [1, math.nan]), "NaN"),
        (lambda: pearson([1, 2], [5, 5]), r"truth are all equal to 5\.0"),
        (lambda: spearman([5, 5], [1, 2]), r"values are all equal to 5\.0"),
        (lambda: relative_rmse([1, 2], [5, 5]), "truth is constant"),
        (lambda: auroc([1, 2], [1, 1]), "all samples are marked True"),
        (lambda: auroc([1, 2], [1, 3]), "0 and 1 only"),
        (lambda: recall_at_k([1, 2], [0, 0], 1), "all samples are marked False"),
        (lambda: recall_at_k([1, 2], [0, 1], 3), "expected 1 to 2"),
        (lambda: recall_at_k([1, 2], [0, 1], 0), "expected 1 to 2"),
    ],
)
def test_a_figure_that_is_not_defined_is_an_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_iterations_to_a_level_are_linear_between_evaluations():
    steps, losses = [0, 10, 20, 30], [5.0, 4.0, 4.5, 3.0]
    assert iterations_to(4.25, steps, losses) == 7.5
    assert iterations_to(3.75, steps, losses) == 25
    assert iterations_to(4.0, steps, losses) == 10
    assert iterations_to(6.0, steps, losses) == 0
    assert iterations_to(2.9, steps, losses) is None
    with pytest.raises(ValueError, match="must ascend"):
        iterations_to(1.0, [0, 0], [1.0, 2.0])
    with pytest.raises(ValueError, match="finite"):
        iterations_to(1.0, [0, 1], [1.0, float("nan")])


def test_detection_curve_counts_what_is_found_among_the_highest_scores():
    scores, bad = [9, 8, 7, 6, 5, 4, 3, 2, 1, 0], [1, 0, 1, 0, 0, 0, 0, 0, 1, 0]
    found = detection_curve(scores, bad, [0.1, 0.3, 0.9, 1.0])
    assert found.tolist() == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert detection_curve([1] * 10, bad, [0.2, 0.5]).tolist() == pytest.approx(
        [0.2, 0.5]
    )  # all tied: chance
    with pytest.raises(ValueError, match="shares of samples"):
        detection_curve(scores, bad, [0.0])
