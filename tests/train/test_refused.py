"""What cannot work is refused before the weights move, with what to do next."""

import math

import pytest
import torch

from inrun.data.errors import CorpusIncomplete, ShardDamaged, TokenOutOfRange
from inrun.store import StoreError
from inrun.train import (
    ConfigError,
    NonFiniteLossError,
    Run,
)
from tests.support.train_example import config, lines, tables, write_documents


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("refused")
    write_documents(root / "raw")
    return root


def test_nan_loss_names_step_and_chunks_and_leaves_weights_and_store_as_they_were(
    root, monkeypatch
):
    run = Run.start(config(root, "nan", train__checkpoint_every=2))
    real, bad = type(run.model).loss, 3
    seen = {}

    def poisoned(model, tokens, targets, reduction="sum", document_ids=None):
        losses = real(model, tokens, targets, reduction, document_ids)
        if run.step == bad and model.training and reduction == "none":
            seen["weights"] = {name: p.detach().clone() for name, p in model.named_parameters()}
            factor = torch.ones(len(losses), 1)
            factor[1] = math.nan
            return losses * factor
        return losses

    monkeypatch.setattr(type(run.model), "loss", poisoned)
    ids = run.batches.sampler.batch_at(bad)
    with pytest.raises(
        NonFiniteLossError,
        match=rf"step 3: the loss of chunk {ids[1]}, {ids[5]} is not finite.*Next: ",
    ):
        run.train()
    assert all(torch.equal(p, seen["weights"][name]) for name, p in run.model.named_parameters())
    assert {row["step"] for row in tables(run.folder)["terms"]} == {0, 1, 2}
    assert lines(run.folder, "chunks.jsonl")[-1]["step"] == 2
    monkeypatch.undo()
    again = Run.resume(run.folder)
    assert again.step == 2
    again.train().close()


def test_nan_loss_is_named_without_a_log_of_chunks_too(root, monkeypatch):
    run = Run.start(config(root, "nan-summed", log__chunk_losses=False, attribution__method=[]))
    ids = run.batches.sampler.batch_at(0)
    poison = run.corpus[ids[5:6]][0, :-1]
    real = type(run.model).loss

    def poisoned(model, tokens, targets, reduction="sum", document_ids=None):
        losses = real(model, tokens, targets, reduction, document_ids)
        hit = (tokens == poison).all(1)
        return torch.where(hit[:, None] if reduction == "none" else hit.any(), math.nan, losses)

    monkeypatch.setattr(type(run.model), "loss", poisoned)
    with pytest.raises(
        NonFiniteLossError, match=rf"step 0: the loss of chunk {ids[5]} is not finite"
    ):
        run.train()


def test_gradient_that_overflows_is_refused_like_a_loss(root, monkeypatch):
    run = Run.start(config(root, "inf", attribution__method=[]))
    monkeypatch.setattr(
        "inrun.train.loop.clip_gradients", lambda model, clip: torch.tensor(math.inf)
    )
    with pytest.raises(NonFiniteLossError, match="the gradient's norm is inf"):
        run.train()
    assert run.step == 0


def test_model_with_too_small_a_vocabulary_is_refused_before_the_first_step(root):
    with pytest.raises(TokenOutOfRange, match=r"the model has 200 token embeddings.*Next: "):
        Run.start(config(root, "vocabulary", model__vocab_size=200))
    assert not (root / "runs" / "vocabulary").exists()


def test_missing_and_damaged_shards_are_refused_before_the_first_step(tmp_path):
    write_documents(tmp_path / "raw")
    run = Run.start(config(tmp_path, "first", train__steps=1))
    run.train().close()
    shard = next(
        path
        for path in (run.corpus.folder / "train").rglob("*")
        if path.suffix not in (".parquet", "")
    )
    content = shard.read_bytes()
    shard.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(ShardDamaged, match=r"another sha256.*Next: "):
        Run.start(config(tmp_path, "hashed", train__verify="hash"))
    shard.unlink()
    with pytest.raises(ShardDamaged, match=r"is missing\. Next: "):
        Run.resume(run.folder)
    assert not (tmp_path / "runs" / "hashed").exists()


def test_half_prepared_corpus_is_not_trained_on(tmp_path):
    write_documents(tmp_path / "raw")
    run = Run.start(config(tmp_path, "first", train__steps=1))
    run.train().close()
    (run.corpus.folder / "manifest.json").unlink()
    with pytest.raises(CorpusIncomplete):
        Run.resume(run.folder)


def test_half_written_store_is_refused_with_a_next_step(root):
    run = Run.start(config(root, "half", train__steps=4))
    run.train().close()
    (run.folder / "values" / "store.json").unlink()
    with pytest.raises(StoreError):
        Run.resume(run.folder)


def test_target_that_wants_more_chunks_than_there_are_says_how_many(root):
    target = {"name": "law", "domains": ["FreeLaw"], "chunks": 5000}
    with pytest.raises(
        ConfigError,
        match=r"target 'law' wants 5000 chunks, but the val split has \d+ of \['FreeLaw'\]",
    ):
        Run.start(config(root, "greedy", attribution__targets=[target]))


def test_run_that_could_not_start_leaves_no_folder(root):
    target = {"name": "law", "domains": ["FreeLaw"], "chunks": 5000}
    with pytest.raises(ConfigError):
        Run.start(config(root, "nothing", attribution__targets=[target]))
    assert not (root / "runs" / "nothing").exists()
