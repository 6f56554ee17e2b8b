"""Configs, presets, fresh weights and what is refused."""

from pathlib import Path

import pytest
import torch
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from inrun import models
from tests.support.model_cases import FAMILIES, FLOAT64, relative_rms, small, tokens_and_targets


@pytest.mark.parametrize(
    ("family", "preset", "vocab_size", "published"),
    [
        ("gpt2", "124m", 50257, 124_439_808),
        ("gpt2", "355m", 50257, 354_823_168),
        ("pythia", "14m", 50304, 14_067_712),
        ("pythia", "160m", 50304, 162_322_944),
        ("pythia", "410m", 50304, 405_334_016),
    ],
)
def test_presets_have_the_published_number_of_parameters(family, preset, vocab_size, published):
    config = models.config(family, preset, vocab_size=vocab_size)
    assert models.parameter_bytes(config) == 4 * published
    assert models.parameter_bytes(config, torch.bfloat16) == 2 * published


@pytest.mark.parametrize("family", FAMILIES)
def test_flops_per_token_equal_the_counted_matrix_products(family):
    model = small(family, fused_head=False)  # the counter does not look into custom operations
    tokens, targets = tokens_and_targets(n=2, t=24)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.loss(tokens, targets).backward()
    assert (
        counter.get_total_flops()
        == models.flops_per_token(model.config, context=24) * tokens.numel()
    )
    assert models.flops_per_token(model.config) == models.flops_per_token(model.config, context=32)


def test_padded_vocab_is_the_next_multiple():
    assert [models.padded_vocab(n) for n in (1, 64, 65, 8192, 50257, 50277)] == [
        64,
        64,
        128,
        8192,
        50304,
        50304,
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_decay_groups_hold_every_trained_parameter_once(family):
    model = small(family)
    frozen = next(model.parameters())
    frozen.requires_grad_(False)
    decayed, plain = models.decay_groups(model, weight_decay=0.1)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert {p.ndim for p in decayed["params"]} == {2}
    assert {p.ndim for p in plain["params"]} == {1}
    listed = [id(p) for p in decayed["params"] + plain["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters() if p is not frozen)
    torch.optim.AdamW(models.decay_groups(model, weight_decay=0.1), lr=1e-3)


@pytest.mark.parametrize(
    ("family", "std", "residual_std"),
    [("gpt2", 0.02, 0.02 / 6**0.5), ("pythia", (2 / (5 * 64)) ** 0.5, 2 / 3 / 8)],
)
def test_fresh_weights_have_the_published_spread(family, std, residual_std):
    """The estimate from k normals has relative spread 1 / sqrt(2 k); five of those are allowed."""
    for name, parameter in small(family).named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif parameter.ndim == 1:
            assert (parameter == 1).all(), name
        else:
            expected = residual_std if "proj" in name else std
            assert abs(parameter.std() / expected - 1) < 5 / (2 * parameter.numel()) ** 0.5, name


def test_the_erf_activation_can_be_chosen():
    exact = small("gpt2", activation="gelu").double()
    tanh = small("gpt2").double()
    tanh.load_state_dict(exact.state_dict())
    x = torch.linspace(-3, 3, 101, dtype=torch.float64)
    phi = torch.special.ndtr(x)
    assert relative_rms(exact.h[0].mlp.activation(x), x * phi) < FLOAT64
    cubic = (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)
    assert relative_rms(tanh.h[0].mlp.activation(x), x * (1 + cubic.tanh()) / 2) < FLOAT64


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: models.build("gpt3", "tiny"), "no model 'gpt3'; known are gpt2, pythia"),
        (
            lambda: models.build("gpt2", "160m"),
            r"no preset '160m'; known: \['124m', '355m', 'tiny'\]",
        ),
        (
            lambda: models.build("pythia", "tiny", dropout=0.1),
            "unknown key 'dropout'; known are vocab_size",
        ),
        (lambda: small("gpt2", n_head=5), "d_model=64 is not a multiple of n_head=5"),
        (lambda: small("gpt2", n_layer=0), "n_layer = 0: expected at least 1"),
        (lambda: small("gpt2", activation="relu"), r"known: \['gelu', 'gelu_new'\]"),
        (lambda: small("gpt2", dropout=1.0), r"dropout is 1\.0"),
        (lambda: small("pythia", rotary_pct=0.2), "rotates 3 of 16"),
    ],
)
def test_unknown_or_impossible_shapes_name_what_is_known(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("field", "value"), [("n_layer", "4"), ("n_layer", True), ("bias", 1), ("dropout", None)]
)
def test_a_config_value_of_the_wrong_type_is_refused(field, value):
    with pytest.raises(TypeError, match=rf"GPT2Config\.{field} = .*expected"):
        models.config("gpt2", "tiny", **{field: value})


@pytest.mark.parametrize("family", FAMILIES)
def test_wrong_inputs_are_refused(family):
    model = small(family)
    tokens, targets = tokens_and_targets()
    with pytest.raises(ValueError, match="33 tokens per sample, but the model has block_size=32"):
        model(torch.zeros(1, 33, dtype=torch.long))
    with pytest.raises(ValueError, match="int64"):
        model(tokens.int())
    with pytest.raises(ValueError, match="document_ids have shape"):
        model(tokens, torch.zeros(3, 23, dtype=torch.long))
    with pytest.raises(ValueError, match="targets have shape"):
        model.loss(tokens, targets[:, 1:])
    with pytest.raises(ValueError, match="known: 'sum', 'none'"):
        model.loss(tokens, targets, reduction="mean")


CONFIG_FILES = sorted((Path(__file__).parents[2] / "configs" / "model").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIG_FILES, ids=lambda path: path.stem)
def test_every_model_config_file_builds_what_its_name_says(path):
    values = yaml.safe_load(path.read_text())
    assert path.stem == f"{values['name']}-{values['preset']}"
    with torch.device("meta"):
        model = models.build(**values)
    assert model.config.vocab_size % 64 == 0


def test_there_is_a_config_file_for_every_preset():
    presets = {
        f"{name}-{preset}"
        for name, family in models.FAMILIES.items()
        for preset in family.module.PRESETS
    }
    assert {path.stem for path in CONFIG_FILES} == presets
