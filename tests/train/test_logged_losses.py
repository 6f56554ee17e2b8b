"""Losses that a run logs, against the loss of each chunk computed by itself in float64."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from inrun import models
from inrun.data.batch import batch_of
from inrun.train import Run, checkpoint
from tests.support.train_example import config, lines, write_documents

STEPS = 4


@pytest.fixture(scope="module", params=["each chunk", "each micro-batch"])
def run(request, tmp_path_factory):
    """Of micro-batches of 3, 3 and 2 chunks, documents apart, so that chunks differ in targets."""
    root = tmp_path_factory.mktemp("losses")
    write_documents(root / "raw")
    return trained(root, request.param == "each chunk")


def trained(root, each):
    run = Run.start(
        config(
            root,
            "run",
            model__dropout=0.0,
            train__steps=STEPS,
            train__micro_batch=3,
            train__separate_documents=True,
            train__checkpoint_every=1,
            train__keep=STEPS,
            log__every=1,
            log__chunk_losses=each,
            attribution__method=[],
        )
    )
    run.train()
    return run


def sums_and_counts(run, step):
    """Of each chunk of `step`: the sum of its targets' losses, and how many they are."""
    model = models.build_from(run.config.model_config())
    place = run.files.checkpoint(step) / "model.safetensors"
    checkpoint.load_model(model, load_file(place), place)
    model.double().eval()
    ids = run.batches.sampler.batch_at(step)
    batch = batch_of(run.corpus, ids, True)
    sums, counts = [], []
    for k in range(len(ids)):
        one = batch[k : k + 1]
        with torch.no_grad():
            logits = model(one.tokens, document_ids=one.document_ids)
        asked = one.targets[0] >= 0
        losses = F.cross_entropy(logits[0][asked], one.targets[0][asked], reduction="none")
        sums.append(float(losses.sum()))
        counts.append(int(asked.sum()))
    return ids, sums, counts


@pytest.mark.parametrize("step", range(1, STEPS))
def test_logged_losses_are_those_of_all_chunks_of_the_step(run, step):
    ids, sums, counts = sums_and_counts(run, step)
    assert len(set(counts)) > 1
    logged = {row["iter"]: row for row in lines(run.folder) if "train/loss" in row}
    # float32 sums of some hundred losses of about 6 nats
    assert logged[step + 1]["train/loss"] == pytest.approx(sum(sums) / sum(counts), rel=1e-5)
    if run.config.log.chunk_losses:
        row = lines(run.folder, "chunks.jsonl")[step]
        assert (row["step"], row["ids"]) == (step, ids.tolist())
        means = [loss / count for loss, count in zip(sums, counts)]
        assert row["losses"] == pytest.approx(means, rel=1e-5)
