"""A run's folder as the baselines see it, and the baselines that read text: each number against a
loop or a formula written out.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

from inrun.baselines import Adaptive, Featured, Textual, TrainedRun, Valued, score
from inrun.baselines.ekfac import Sampled
from inrun.baselines.language import LanguageRun
from inrun.baselines.text import BM25Index, BM25Options, words
from inrun.data.sampler import Sampler
from inrun.store import ValueStore
from inrun.train import Run, RunFolderError, TargetConfig
from tests.support.train_example import config, weights, write_documents


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> LanguageRun:
    root = tmp_path_factory.mktemp("language")
    write_documents(root / "raw")
    with Run.start(config(root), Console(quiet=True)) as run:
        run.train().close()
    own = TargetConfig("own", domains=("Github",), path=str(root / "raw"), chunks=2)
    return LanguageRun(root / "runs" / "run", targets=(own,))


def test_adapter_has_the_contract_and_its_optional_parts(trained):
    for protocol in (TrainedRun, Textual, Featured, Valued, Adaptive, Sampled):
        assert isinstance(trained, protocol)
    assert trained.targets == ("law", "all", "own")
    assert [c.step for c in trained.checkpoints] == [8, 12]
    drawn = {
        int(i) for step in range(12) for i in Sampler(len(trained.corpus), 8, 1).batch_at(step)
    }
    assert trained.sample_ids.tolist() == sorted(drawn)
    assert trained.checkpoints[1].lr == pytest.approx(
        3e-4 + 0.5 * (1 + math.cos(math.pi * 8 / 9)) * (3e-3 - 3e-4)
    )


def test_model_is_that_of_the_checkpoint_and_moments_are_the_optimizers(trained):
    saved = weights(trained.folder)
    model = trained.model()
    assert not model.training
    for name, p in model.named_parameters():
        assert torch.equal(p, saved[name])
        assert p.requires_grad
        assert torch.equal(trained.moments().second[name], saved[f"exp_avg_sq/{name}"])
    first = trained.model(0)
    assert any(not torch.equal(p, saved[name]) for name, p in first.named_parameters())


def test_losses_are_the_chunks_own(trained):
    model, ids = trained.model(), trained.sample_ids[:3]
    tokens = trained.corpus[ids]
    expected = [F.cross_entropy(model(row[None, :-1])[0], row[1:]) for row in tokens]
    assert torch.allclose(trained.losses(model, ids), torch.stack(expected), rtol=1e-5)
    with torch.no_grad():
        assert torch.allclose(
            trained.losses(model, trained.sample_ids)[:3], torch.stack(expected), rtol=1e-5
        )
    assert trained.losses(model, ids).requires_grad
    assert trained.texts(ids)[1] == trained.corpus.text(int(ids[1])).replace(
        "<|endoftext|>", "\n\n"
    )


def test_own_documents_are_a_target_with_their_own_lengths(trained):
    model = trained.model()
    texts = trained.target_texts("own")
    assert len(texts) == 2
    expected = []
    for text in texts:
        ids = torch.tensor(
            [
                *trained.corpus.tokenizer.encode(text.removesuffix("\n\n")),
                trained.corpus.tokenizer.eot,
            ][:33]
        )
        expected.append(F.cross_entropy(model(ids[None, :-1])[0], ids[1:]))
    assert torch.allclose(trained.target_losses(model, "own"), torch.stack(expected), rtol=1e-5)
    read = "def f ( y ) : return y + 1"
    assert all(set(text.split()[:-1]) <= set(read.split()) for text in texts)


def test_values_are_those_of_the_store(trained):
    table = trained.values("path", "law")
    with ValueStore(trained.folder / "values") as store:
        rows = store.sql(
            "SELECT sample_id, sum(CAST(path AS DOUBLE)) AS value FROM terms WHERE target = "
            "'law' GROUP BY 1 ORDER BY 1"
        )
    assert table["sample_id"].to_pylist() == trained.sample_ids.tolist()
    assert table["value"].to_numpy() == pytest.approx(rows["value"].to_numpy())


def test_sampled_losses_are_in_expectation_the_entropy(trained):
    """E over labels drawn from p of -log p is the entropy of p, and its gradient is zero: that is
    what makes the Fisher matrix.
    """
    model, ids = trained.model(), trained.sample_ids[:2]
    with torch.no_grad():
        log_p = model(trained.corpus[ids][:, :-1]).log_softmax(-1)
        entropy = -(log_p.exp() * log_p).sum(-1).mean(1)
        draws = torch.stack([trained.sampled_losses(model, ids, seed) for seed in range(200)])
    spread = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - entropy).abs() < 4 * spread).all()
    assert torch.equal(draws[5], trained.sampled_losses(model, ids, 5).detach())


def test_another_corpus_or_no_run_is_refused(trained, tmp_path):
    with pytest.raises(RunFolderError, match="is no run"):
        LanguageRun(tmp_path)


def test_resumed_run_refuses_other_documents_behind_its_target(tmp_path):
    write_documents(tmp_path / "raw")
    write_documents(tmp_path / "mine", count=6, seed=3)
    targets = [{"name": "mine", "path": str(tmp_path / "mine"), "chunks": 4}]
    settings = config(
        tmp_path, attribution__targets=targets, attribution__method=[{"kind": "first_order"}]
    )
    with Run.start(
        replace(settings, train=replace(settings.train, steps=2)), Console(quiet=True)
    ) as run:
        run.train().close()
    Run.resume(tmp_path / "runs" / "run", Console(quiet=True)).close()
    write_documents(tmp_path / "mine", count=6, seed=4)
    with pytest.raises(RunFolderError, match="other documents behind the targets mine"):
        Run.resume(tmp_path / "runs" / "run", Console(quiet=True))


def test_bm25_is_its_formula(trained):
    scored = score(trained, "law", "bm25")
    documents = [words(text) for text in trained.texts(trained.sample_ids)]
    average, n = np.mean([len(d) for d in documents]), len(documents)
    expected = np.zeros(n)
    queries = [words(text) for text in trained.target_texts("law")]
    for query in queries:
        for word in query:
            holding = sum(word in d for d in documents)
            weight = math.log(1 + (n - holding + 0.5) / (holding + 0.5))
            for k, document in enumerate(documents):
                count = document.count(word)
                expected[k] += (
                    weight * count / (count + 1.5 * (1 - 0.75 + 0.75 * len(document) / average))
                )
    assert scored.values == pytest.approx(expected / len(queries), rel=1e-4)
    assert BM25Index(trained, BM25Options()).scores(["qqq zzz"]) == pytest.approx(np.zeros(n))


def test_embedding_is_the_cosine_of_centred_mean_hidden_states(trained):
    scored = score(trained, "law", "embedding")
    model = trained.model().double()
    with torch.no_grad():
        rows = model.features(trained.corpus[trained.sample_ids][:, :-1]).mean(1).numpy()
        queries = trained.target_features(model, "law").numpy()
    mean = rows.mean(0)
    expected = [
        np.mean(
            [
                (r - mean) @ (q - mean) / np.linalg.norm(r - mean) / np.linalg.norm(q - mean)
                for q in queries
            ]
        )
        for r in rows
    ]
    assert scored.values == pytest.approx(np.array(expected), abs=1e-5)
    assert scored.values[np.argmax(scored.values)] <= 1


def test_a_chunk_is_its_own_nearest_neighbour(trained, tmp_path):
    """Search with the very text of a chunk finds it first, by words and by hidden states."""
    import json

    chosen = int(trained.sample_ids[11])
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps({"text": trained.corpus.text(chosen), "domain": "x"}))
    run = LanguageRun(trained.folder, targets=(TargetConfig("one", path=str(path)),))
    values = score(run, "one", "embedding").values
    assert run.sample_ids[np.argmax(values)] == chosen
