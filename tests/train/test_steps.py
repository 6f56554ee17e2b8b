"""What a step of the trainer does to the weights: the same with and without values, however the
batch is cut.
"""

import copy
import gc

import numpy as np
import pytest
import torch

from inrun.data.batch import Batch, batch_of
from inrun.data.corpus import Corpus
from inrun.evaluate import evaluate
from inrun.ghost.tape import Recorder
from inrun.models import IGNORED_TARGET
from inrun.train import Run
from inrun.train.precision import Precision, PrecisionError
from inrun.train.prefetch import Prefetcher
from inrun.train.targets import target_ids
from tests.support.train_example import config, tables, weights, write_documents


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("steps")
    write_documents(root / "raw")
    return root


def trained(root, name, **changes):
    run = Run.start(
        config(root, name, train__eval_every=0, train__checkpoint_every=0, log__every=10, **changes)
    )
    run.train()
    return run


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lion"])
def test_weights_are_the_same_bits_with_and_without_values(root, optimizer):
    common = {"optim__name": optimizer, "train__steps": 20, "train__micro_batch": 3}
    # Lion's update has no slope that is known before the gradient
    methods = [{"kind": "path"}] + ([{"kind": "first_order"}] if optimizer != "lion" else [])
    valued = trained(root, f"valued-{optimizer}", attribution__method=methods, **common)
    plain = trained(root, f"plain-{optimizer}", attribution__method=[], **common)
    clips = [row["clip"] for row in tables(valued.folder)["steps"]]
    assert any(clip < 1 for clip in clips), "the test is to cover steps that are clipped"
    got, want = weights(valued.folder), weights(plain.folder)
    assert got.keys() == want.keys()
    assert [name for name in want if not torch.equal(got[name], want[name])] == []


def test_second_order_and_per_token_values_leave_the_weights_alone_too(root):
    common = {"train__steps": 3}
    valued = trained(
        root,
        "tokens",
        attribution__method=[{"kind": "second_order"}],
        attribution__per_token=True,
        **common,
    )
    plain = trained(root, "no-tokens", attribution__method=[], **common)
    got, want = weights(valued.folder), weights(plain.folder)
    assert [name for name in want if not torch.equal(got[name], want[name])] == []


# Rounding: the same products are added in another order. fp32 has 6e-8; values of a sample cancel
# over its parameters, and gradients over tokens, by one or two orders of magnitude each. SGD,
# because AdamW's first steps divide by the size of elements that are themselves rounding.
ORDER = 1e-4


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_micro_batches_of_unequal_token_counts_give_the_values_and_weights_of_the_whole_batch(
    root, micro_batch
):
    common = {
        "train__separate_documents": True,
        "train__steps": 3,
        "model__dropout": 0.0,
        "optim__name": "sgd",
        "optim__lr": 0.1,
    }
    name = f"micro-{micro_batch}"
    whole = trained(root, f"{name}-whole", train__micro_batch=0, **common)
    parts = trained(root, name, train__micro_batch=micro_batch, **common)
    counts = (
        batch_of(whole.corpus, whole.batches.sampler.batch_at(0), True).targets != IGNORED_TARGET
    ).sum(1)
    assert len(set(counts.tolist())) > 1, "the test is to cover unequal token counts"
    mine, theirs = (tables(run.folder)["terms"] for run in (parts, whole))
    assert [(r["step"], r["sample_id"], r["target"]) for r in mine] == [
        (r["step"], r["sample_id"], r["target"]) for r in theirs
    ]
    for method in ("path", "first_order"):
        a, b = (np.array([row[method] for row in rows]) for rows in (mine, theirs))
        assert np.sqrt(np.mean((a - b) ** 2)) < ORDER * b.std()
    got, want = weights(parts.folder), weights(whole.folder)
    for key, tensor in want.items():
        if not key.startswith("rng/"):
            assert (got[key] - tensor).norm() <= ORDER * tensor.norm(), key


def test_gradient_of_a_cut_batch_is_that_of_the_global_token_mean(root):
    plain = {"attribution__method": [], "model__dropout": 0.0}
    run = Run.start(
        config(root, "mean", train__separate_documents=True, train__micro_batch=3, **plain)
    )
    ids = run.batches.sampler.batch_at(0)
    batch = batch_of(run.corpus, ids, True)
    oracle = copy.deepcopy(run.model).double()
    logits = oracle(batch.tokens, batch.document_ids)
    # one mean over all labelled tokens of the logical batch, as torch computes it
    torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED_TARGET
    ).backward()
    for rows in (slice(0, 3), slice(3, 6), slice(6, 8)):
        run.gradient.part(ids[rows], batch[rows], batch.count(), True)
    run.close()
    for (name, p), q in zip(run.model.named_parameters(), oracle.parameters()):
        # fp32 sums over 8 x 32 tokens: sqrt(256) x 6e-8, with two orders of magnitude of
        # cancellation
        assert (p.grad - q.grad).norm() < 1e-4 * q.grad.norm(), name


def test_separate_documents_predict_nothing_across_a_border(root):
    with Run.start(
        config(root, "borders", train__separate_documents=True, attribution__method=[])
    ) as run:
        ids = np.arange(12)
        chunks, batch = run.corpus[ids], batch_of(run.corpus, ids, True)
    end = 256  # the byte tokenizer's <|endoftext|>
    ends = chunks[:, :-1] == end
    assert ends.any()
    assert bool((batch.targets[ends] == IGNORED_TARGET).all())
    assert torch.equal(batch.targets[~ends], chunks[:, 1:][~ends])
    assert torch.equal(batch.document_ids[:, 1:] != batch.document_ids[:, :-1], ends[:, :-1])


@pytest.mark.parametrize("separate", [False, True])
def test_validation_keeps_documents_apart_where_training_does(root, separate):
    with Run.start(
        config(root, f"apart-{separate}", train__separate_documents=separate, train__eval_chunks=8)
    ) as run:
        chunks = run.evaluation.corpus[run.evaluation.ids]
        losses = evaluate(run.model, run.evaluation.batches(), run.evaluation.domains)
        end = 256  # the byte tokenizer's <|endoftext|>
        tokens, targets = chunks[:, :-1], chunks[:, 1:]
        ends = tokens == end
        assert ends.any()
        # oracle: document numbers and borders read off the tokens themselves
        documents = torch.cat([torch.zeros_like(ends[:, :1]), ends[:, :-1]], 1).cumsum(1)
        run.model.eval()
        logits = run.model(tokens, documents if separate else None).double()
        each = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), reduction="none"
        )
        scored = ~ends if separate else torch.ones_like(ends)
        assert losses.tokens == int(scored.sum())
        # float32 logits, summed in float64
        mean = each[scored.flatten()].mean().item()
        assert losses.mean == pytest.approx(mean, rel=1e-6)
        assert run.evaluation.row(run.model, run.precision)["val/loss"] == losses.mean


def test_target_is_the_mean_token_loss_of_its_chunks_however_it_is_cut(root):
    losses, gradients = [], []
    for cut in (0, 1, 3):
        with Run.start(
            config(root, f"target-{cut}", attribution__target_micro_batch=cut, model__dropout=0.3)
        ) as run:
            target = run.attributor.targets["all"]
            losses.append(target.loss())
            gradients.append(target.gradient())
            assert run.model.training
            ids = target_ids_of(run, "all")
            batches = batch_of(Corpus.open(run.corpus.folder, "val"), ids).split(2)
            mean = evaluate(run.model, batches, ["all"] * len(ids)).mean
            assert losses[-1] == pytest.approx(mean, rel=1e-6)
    for gradient in gradients[1:]:
        for name, g in gradient.items():
            assert (g - gradients[0][name]).norm() <= 1e-5 * gradients[0][name].norm(), name


def target_ids_of(run, name):
    place = [target.name for target in run.config.attribution.targets].index(name)
    corpus = Corpus.open(run.corpus.folder, "val")
    return target_ids(corpus, run.config.attribution.targets[place], run.config.seed)


def test_bf16_run_on_a_cpu_is_close_to_fp32_and_also_valued(root):
    exact = trained(root, "fp32", train__steps=2, model__dropout=0.0)
    coarse = trained(root, "bf16", train__steps=2, model__dropout=0.0, train__precision="bf16")
    a, b = (
        np.array([row["path"] for row in tables(run.folder)["terms"]]) for run in (coarse, exact)
    )
    # bf16 has 2^-9; a value cancels over parameters by an order of magnitude
    assert np.sqrt(np.mean((a - b) ** 2)) < 0.05 * np.sqrt(np.mean(b**2))
    assert not np.array_equal(a, b)


def test_device_that_is_not_there_is_named():
    if not torch.cuda.is_available():
        with pytest.raises(PrecisionError, match="finds no CUDA device"):
            Precision.choose("cuda", "auto")
    assert Precision.choose("cpu", "auto").dtype is None
    assert Precision.choose("cpu", "bf16").dtype is torch.bfloat16


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", ["first_order", "second_order", "path"])
def test_nothing_of_a_step_outlives_it(root, kind, fused):
    method = {"kind": kind, **({"state": "current"} if kind == "first_order" else {})}
    run = trained(
        root,
        f"outlive-{kind}-{fused}",
        train__steps=3,
        attribution__method=[method],
        attribution__route="fused" if fused else "tap",
    )
    gc.collect()
    left = [thing for thing in gc.get_objects() if issubclass(type(thing), Recorder)]
    assert left == []
    held = [t for t in gc.get_objects() if type(t) is torch.Tensor and t.grad_fn is not None]
    assert held == []
    assert run.step == 3


def test_batches_read_ahead_are_those_that_are_asked_for(root):
    read = []

    def load(ids):
        read.append(ids.tolist())
        if 7 in ids:
            raise OSError("a shard is gone")
        return Batch(torch.from_numpy(ids)[:, None], torch.zeros(len(ids), 1))

    ahead = Prefetcher(load)
    steps = [np.array(ids) for ids in ([0, 1], [2, 3], [4, 5], [6, 7])]
    assert ahead.get(steps[0], steps[1]).tokens.flatten().tolist() == [0, 1]
    assert ahead.get(steps[1], steps[2]).tokens.flatten().tolist() == [2, 3]
    assert ahead.get(steps[0], steps[3]).tokens.flatten().tolist() == [
        0,
        1,
    ]  # another one than was announced
    with pytest.raises(OSError, match="a shard is gone"):
        ahead.get(steps[3], None)
    ahead.close()
    assert sorted(read) == [[0, 1], [0, 1], [2, 3], [4, 5], [6, 7]]
