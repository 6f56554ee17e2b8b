"""Configs are strict, and what cannot work is refused before the first step."""

import json
import math

import pytest
import torch
from torch import nn

from inrun.config import build
from inrun.data.errors import CorpusIncomplete, ShardDamaged, TokenOutOfRange
from inrun.store import StoreError, ValueStore
from inrun.train import (
    AttributionConfig,
    ConfigError,
    NonFiniteLossError,
    OptimConfig,
    Run,
    RunConfig,
    TargetConfig,
)
from inrun.train.dry_run import estimate
from inrun.train.optim import build_optimizer, clip_gradients, lr_at
from inrun.updates import Lion
from tests.support.train_example import config, lines, settings, tables, write_documents


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("config")
    write_documents(root / "raw")
    return root


def test_config_goes_to_json_and_back(tmp_path):
    given = config(tmp_path)
    assert RunConfig.from_mapping(json.loads(json.dumps(given.to_mapping()))) == given


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim__learning_rate": 1.0}, r"config\.optim: unknown key 'learning_rate'; known are name, lr, min_lr, warmup"),
        ({"nonsense": 1}, r"config: unknown key 'nonsense'; known are name, model, data, optim, train"),
        ({"model__n_layers": 3}, r"no option \['n_layers'\]; known: .*n_layer"),
        ({"model": {"preset": "tiny"}}, "model: name must be given"),
        ({"data__blocksize": 3}, r"config\.data: unknown key 'blocksize'"),
        ({"attribution__methods": [{"kind": "third_order"}]}, r"config\.attribution\.methods\[0\].*third_order.*choose one of"),
        ({"attribution__targets": [{"name": "a"}, {"name": "a"}]}, "distinct names"),
        ({"attribution__targets": [{"chunks": 2}]}, r"targets\[0\]: name must be given"),
        ({"train__steps": "many"}, r"config\.train\.steps = 'many': expected int"),
        ({"train__steps": True}, r"config\.train\.steps = True: expected int"),
        ({"train__precision": "fp8"}, "choose one of auto, fp32, bf16"),
        ({"optim__name": "muon"}, "optim.name='muon': choose one of adamw, lion, sgd"),
        ({"optim__min_lr": 1.0}, "0 <= min_lr <= lr"),
        ({"data__block_size": 64}, r"data\.block_size=64 is more than model\.block_size=32"),
        ({"train__compile": True}, "what runs inside torch.compile is not seen.*attribution=off"),
        ({"log__wandb": "yes"}, "choose one of off, offline, online"),
        ({"name": "a/b"}, "must be the name of a folder"),
    ],
)  # fmt: skip
def test_config_that_cannot_be_meant_is_refused_by_name(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, **changes)


def test_integers_are_fine_floats_and_lists_fine_tuples():
    built = build(OptimConfig, {"lr": 1, "min_lr": 0, "betas": [0, 0.5]})
    assert (built.lr, built.betas) == (1.0, (0.0, 0.5))
    assert type(built.lr) is float
    with pytest.raises(ConfigError, match="expected 2 entries"):
        build(OptimConfig, {"betas": [0.9]})


def test_learning_rate_rises_falls_and_stays():
    schedule = OptimConfig(lr=1.0, min_lr=0.1, warmup=4, decay_steps=14)
    rates = [lr_at(step, 100, schedule) for step in range(30)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4] == 1.0
    assert rates[9] == pytest.approx(0.1 + 0.9 * 0.5)  # half way along the cosine
    assert rates[6] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 0.2)) / 2)
    assert rates[14:] == [0.1] * 16
    assert lr_at(99, 100, OptimConfig(lr=1.0, min_lr=0.0, warmup=0)) > 0


@pytest.mark.parametrize(
    ("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD), ("lion", Lion)]
)
def test_vectors_are_not_decayed(name, kind):
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    optimizer = build_optimizer(model, OptimConfig(name=name, weight_decay=0.2))
    assert type(optimizer) is kind
    decay = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    assert [decay[id(p)] for p in model.parameters()] == [0.2, 0.0, 0.0, 0.0]


def test_clipping_is_by_the_global_norm():
    model = nn.Linear(2, 1)
    for largest, factor in ((1.0, 1 / 13), (0.0, 1.0), (20.0, 1.0)):
        model.weight.grad, model.bias.grad = torch.tensor([[3.0, 4.0]]), torch.tensor([12.0])
        assert float(clip_gradients(model, largest)) == pytest.approx(13.0)
        assert model.weight.grad.flatten().tolist() == pytest.approx(
            [3 * factor, 4 * factor], rel=1e-5
        )
        assert model.bias.grad.tolist() == pytest.approx([12 * factor], rel=1e-5)


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
    run = Run.start(config(root, "nan-summed", log__chunk_losses=False, attribution__methods=[]))
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
    run = Run.start(config(root, "inf", attribution__methods=[]))
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


@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")  # inductor's own
def test_compiled_run_trains_without_values(root):
    run = Run.start(
        config(
            root,
            "compiled",
            train__compile=True,
            attribution__methods=[],
            train__steps=2,
            model__n_layer=1,
            model__dropout=0.0,
        )
    )
    assert run.train() is None
    plain = Run.start(
        config(
            root,
            "eager",
            attribution__methods=[],
            train__steps=2,
            model__n_layer=1,
            model__dropout=0.0,
        )
    )
    plain.train()
    a, b = (lines(r.folder)[-1]["val/loss"] for r in (run, plain))
    assert a == pytest.approx(
        b, rel=1e-4
    )  # fused kernels round elsewhere; two AdamW steps do not make more of it


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_compiled_run_values_its_samples_as_an_eager_one_does(root):
    values = {}
    for name, compiled in (("compiled-values", True), ("eager-values", False)):
        run = Run.start(
            config(
                root,
                name,
                train__compile=compiled,
                attribution__methods=[{"kind": "first_order", "update": "sgd"}],
                attribution__route="compiled" if compiled else "rules",
                train__steps=2,
                model__n_layer=1,
                model__dropout=0.0,
            )
        )
        store = run.train()
        values[name] = (
            store.sql("SELECT sum(first_order) AS total FROM terms").column("total").to_pylist()
        )
        ledger = (
            store.sql("SELECT count(*) AS rows FROM ledger WHERE residual IS NOT NULL")
            .column("rows")
            .to_pylist()
        )
        assert ledger[0] > 0  # the drift was evaluated at moved weights, through the compiled model
    assert values["compiled-values"] == pytest.approx(values["eager-values"], rel=1e-3)


def test_log_has_the_keys_that_are_promised(root):
    run = Run.start(config(root, "log"))
    store = run.train()
    rows = lines(run.folder)
    assert [row["iter"] for row in rows] == [0, 2, 4, 6, 6, 8, 10, 12, 12]
    training = {"iter", "train/loss", "lr", "grad_norm"}
    values = {
        f"value/{what}/{target}"
        for what in ("sum", "pos_frac", "entropy", "residual")
        for target in ("law", "all")
    }
    assert set(rows[2]) == training | values
    assert set(rows[-1]) == {
        "iter",
        "val/loss",
        *(f"val/loss/{domain}" for domain in ("ArXiv", "Github", "FreeLaw")),
    }
    terms = [
        row["path"]
        for row in tables(run.folder)["terms"]
        if row["step"] == 11 and row["target"] == "law"
    ]
    assert rows[-2]["value/sum/law"] == pytest.approx(sum(terms), rel=1e-5)
    assert rows[-2]["value/pos_frac/law"] == sum(value > 0 for value in terms) / len(terms)
    shares = [abs(value) / sum(map(abs, terms)) for value in terms]
    assert rows[-2]["value/entropy/law"] == pytest.approx(
        -sum(s * math.log(s) for s in shares) / math.log(8), rel=1e-5
    )
    ids = lines(run.folder, "chunks.jsonl")[4]["ids"]
    assert ids == run.batches.sampler.batch_at(4).tolist()
    assert isinstance(store, ValueStore)
    store.close()


def test_wandb_writes_offline_beside_the_run_and_waits_for_nobody(root):
    run = Run.start(
        config(root, "wandb", log__wandb="offline", attribution__methods=[], train__steps=2)
    )
    run.train()
    assert list((run.folder / "wandb").glob("offline-run-*/run-*.wandb"))


def test_estimate_counts_what_can_be_counted(tmp_path):
    run = config(tmp_path)
    guess = estimate(run)
    parameters = sum(p.numel() for p in _model(run).parameters())
    assert guess.parameters == parameters
    assert guess.weights == 4 * parameters
    assert guess.rows == 12 * 8 * 2
    assert (
        guess.directions == (2 * 4 + 2) * 4 * parameters
    )  # two methods by two targets, twice; the targets' gradients
    assert guess.memory > guess.weights * 4
    values = settings(tmp_path, attribution__methods=[])
    plain = estimate(RunConfig.from_mapping(values))
    assert (plain.directions, plain.tape, plain.rows, plain.store) == (0, 0, 0, 0)


def _model(run):
    from inrun.models import build_from

    return build_from(run.model_config())


def test_attribution_without_methods_is_off():
    assert not AttributionConfig().on
    assert AttributionConfig(methods=(), targets=()).on is False
    assert TargetConfig("val").chunks == 16
