"""The models against Hugging Face's in float64, and the contracts that the rest of the project
leans on.

Tolerances. Two correct float64 implementations differ by the order of sums only: a few hundred
roundings of 1.1e-16 each, so FLOAT64 = 1e-13 relative RMS. Hugging Face's eager GPT-NeoX computes
its softmax in float32 whatever the model's dtype, with a relative error of about 2^-24 per
attention weight: FLOAT32_SOFTMAX = 2^-22.
"""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from inrun import models
from inrun.models.language_model import attend, document_mask
from inrun.models.pythia import rotary_tables, rotate

FLOAT64 = 1e-13
FLOAT32_SOFTMAX = 2**-22
SHAPE = {"vocab_size": 101, "block_size": 32, "n_layer": 3, "n_head": 4, "d_model": 64}
FAMILIES = ("gpt2", "pythia")


def small(family, **overrides):
    return models.build(family, "tiny", **(SHAPE | overrides))


def moved(model):
    """The model with every parameter off its initial value: zero biases and unit gains would hide
    mistakes.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def hugging_face(family, attention="sdpa"):
    transformers = pytest.importorskip("transformers")
    common = {
        "vocab_size": 101,
        "bos_token_id": None,
        "eos_token_id": None,
        "attn_implementation": attention,
    }
    if family == "gpt2":
        config = transformers.GPT2Config(n_positions=32, n_layer=3, n_head=4, n_embd=64, **common)
        model = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.GPTNeoXConfig(
            max_position_embeddings=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            hidden_size=64,
            intermediate_size=256,
            **common,
        )
        model = transformers.GPTNeoXForCausalLM(config)
    return moved(model.double().eval())


def tokens_and_targets(n=3, t=24):
    tokens = torch.randint(101, (n, t))
    targets = torch.randint(101, (n, t))
    targets[0, 5:9] = models.IGNORED_TARGET
    return tokens, targets


def relative_rms(got, truth):
    return ((got - truth).norm() / truth.norm()).item()


@pytest.mark.parametrize(
    ("family", "attention", "tolerance"),
    [
        ("gpt2", "eager", FLOAT64),
        ("gpt2", "sdpa", FLOAT64),
        ("pythia", "eager", FLOAT32_SOFTMAX),
        ("pythia", "sdpa", FLOAT64),
    ],
)
def test_logits_equal_hugging_face(family, attention, tolerance):
    theirs = hugging_face(family, attention)
    ours = models.from_hf(theirs.state_dict(), models.config(family, "tiny", **SHAPE)).eval()
    tokens, _ = tokens_and_targets()
    with torch.no_grad():
        logits = ours(tokens)
        assert logits.dtype == torch.float64
        assert relative_rms(logits, theirs(tokens).logits) < tolerance


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_equal_those_from_hugging_face_logits(family):
    theirs = hugging_face(family)
    ours = models.from_hf(theirs.state_dict(), models.config(family, "tiny", **SHAPE))
    tokens, targets = tokens_and_targets()
    loss = ours.loss(tokens, targets)
    loss.backward()

    log_p = theirs(tokens).logits.log_softmax(-1)
    kept = targets != models.IGNORED_TARGET
    token_losses = -log_p.gather(-1, targets.clamp(min=0)[..., None])[..., 0] * kept
    token_losses.sum().backward()

    assert relative_rms(ours.loss(tokens, targets, reduction="none"), token_losses) < FLOAT64
    assert relative_rms(loss, token_losses.sum()) < FLOAT64
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    ours.load_state_dict(
        gradients | {k: v for k, v in ours.state_dict().items() if k not in gradients}
    )
    in_their_names = models.to_hf(ours)
    for name, parameter in theirs.named_parameters():
        # Keys' biases have gradient zero (softmax ignores a shift): compare on the scale of the
        # largest gradients.
        scale = parameter.grad.norm() + 1e-3 * loss.abs()
        assert (in_their_names[name] - parameter.grad).norm() < FLOAT64 * scale, name


@pytest.mark.parametrize("family", FAMILIES)
def test_conversion_round_trips_exactly(family):
    theirs = hugging_face(family)
    config = models.config(family, "tiny", **SHAPE)
    there_and_back = models.to_hf(models.from_hf(theirs.state_dict(), config))
    assert there_and_back.keys() == theirs.state_dict().keys()
    assert all(
        torch.equal(there_and_back[name], tensor) for name, tensor in theirs.state_dict().items()
    )
    theirs.load_state_dict(there_and_back)

    ours = moved(models.build_from(config))
    again = models.from_hf(models.to_hf(ours), config)
    assert again.state_dict().keys() == ours.state_dict().keys()
    assert all(
        torch.equal(again.state_dict()[name], tensor) for name, tensor in ours.state_dict().items()
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_converted_tensors_share_no_memory_with_the_model(family):
    model = small(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for tensor in models.to_hf(model).values():
        tensor.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_gpt2_without_biases_is_hugging_faces_with_zero_biases():
    theirs = hugging_face("gpt2")
    config = models.config("gpt2", "tiny", bias=False, **SHAPE)
    with pytest.raises(ValueError, match=r"h\.0\.ln_1\.bias is not zero.*bias=True"):
        models.from_hf(theirs.state_dict(), config)
    ours = moved(models.build_from(config).double())
    assert not any(name.endswith("bias") for name in ours.state_dict())
    theirs.load_state_dict(models.to_hf(ours))
    tokens, _ = tokens_and_targets()
    assert relative_rms(ours(tokens), theirs(tokens).logits) < FLOAT64
    again = models.from_hf(theirs.state_dict(), config)
    assert all(
        torch.equal(again.state_dict()[name], tensor) for name, tensor in ours.state_dict().items()
    )


def test_published_checkpoint_names_are_understood():
    gpt2 = {name.removeprefix("transformer."): t for name, t in models.to_hf(small("gpt2")).items()}
    del gpt2["lm_head.weight"]
    gpt2["h.0.attn.bias"] = torch.ones(1, 1, 32, 32).tril()
    models.from_hf(gpt2, models.config("gpt2", "tiny", **SHAPE))

    pythia = models.to_hf(small("pythia"))
    pythia["embed_out.weight"] = pythia.pop("lm_head.weight")
    pythia["gpt_neox.layers.0.attention.bias"] = torch.ones(1, 1, 32, 32).tril()
    pythia["gpt_neox.layers.0.attention.masked_bias"] = torch.tensor(-1e9)
    pythia["gpt_neox.layers.0.attention.rotary_emb.inv_freq"] = torch.ones(2)
    models.from_hf(pythia, models.config("pythia", "tiny", **SHAPE))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(family):
    config = models.config(family, "tiny", **SHAPE)
    good = models.to_hf(small(family))
    first = next(iter(good))
    with pytest.raises(KeyError, match=first.removeprefix("transformer.")):
        models.from_hf({name: t for name, t in good.items() if name != first}, config)
    with pytest.raises(ValueError, match="of 2 layers has not"):
        models.from_hf(good, models.config(family, "tiny", **(SHAPE | {"n_layer": 2})))
    with pytest.raises(
        ValueError, match=r"shape \(101, 64\), the config wants \(128, 64\); set vocab_size"
    ):
        models.from_hf(good, models.config(family, "tiny", **(SHAPE | {"vocab_size": 128})))
    with pytest.raises(ValueError, match="mixes"):
        models.from_hf(
            good | {name: t.double() for name, t in good.items() if name.endswith("bias")}, config
        )


def test_gpt2_with_a_head_of_its_own_is_refused():
    state = models.to_hf(small("gpt2"))
    state["lm_head.weight"] = state["lm_head.weight"] + 1
    with pytest.raises(ValueError, match="tied head"):
        models.from_hf(state, models.config("gpt2", "tiny", **SHAPE))


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_documents_equal_the_documents_alone(family):
    """Oracle: Hugging Face on each document, at the positions at which it lies in the sample."""
    theirs = hugging_face(family)
    ours = models.from_hf(theirs.state_dict(), models.config(family, "tiny", **SHAPE))
    tokens, _ = tokens_and_targets(n=2)
    starts = [[0, 7, 16, 24], [0, 1, 23, 24]]
    document_ids = torch.tensor(
        [[sum(p >= s for s in row[1:]) for p in range(24)] for row in starts]
    )
    with torch.no_grad():
        packed = ours(tokens, document_ids)
        for row, bounds in enumerate(starts):
            for start, stop in pairwise(bounds):
                positions = torch.arange(start, stop)[None]
                alone = theirs(tokens[row : row + 1, start:stop], position_ids=positions).logits
                assert relative_rms(packed[row : row + 1, start:stop], alone) < FLOAT64
        assert relative_rms(ours(tokens, document_ids * 0), ours(tokens)) < FLOAT64


def test_pythia_documents_do_not_depend_on_where_they_lie():
    """Rotary attention sees distances; the angles are float32 numbers of up to t = 24, off by t
    2^-24 = 1.4e-6.
    """
    model = moved(small("pythia").double())
    tokens, _ = tokens_and_targets(n=1)
    document_ids = (torch.arange(24) >= 10).long()[None]
    with torch.no_grad():
        assert relative_rms(model(tokens, document_ids)[:, 10:], model(tokens[:, 10:])) < 2e-6


@pytest.mark.parametrize("packed", [False, True])
def test_attention_is_a_softmax_over_the_allowed_past(packed):
    n, h, t, c = 2, 3, 5, 4
    q, k, v = torch.randn(3, n, h, t, c, dtype=torch.float64)
    ids = (
        torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 0, 2]])
        if packed
        else torch.zeros(n, t, dtype=torch.long)
    )
    mixed = attend(q, k, v, document_mask(ids if packed else None)).view(n, t, h, c)
    for sample in range(n):
        for head in range(h):
            for token in range(t):
                past = [s for s in range(token + 1) if ids[sample, s] == ids[sample, token]]
                weights = torch.stack(
                    [q[sample, head, token] @ k[sample, head, s] / c**0.5 for s in past]
                ).softmax(0)
                expected = sum(w * v[sample, head, s] for w, s in zip(weights, past, strict=True))
                assert relative_rms(mixed[sample, token, head], expected) < FLOAT64


@pytest.mark.parametrize("family", FAMILIES)
def test_a_later_token_does_not_change_earlier_logits(family):
    model = moved(small(family))
    tokens, _ = tokens_and_targets()
    changed = tokens.clone()
    changed[:, 11] = (changed[:, 11] + 1) % 101
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :11], after[:, :11])
    assert (before[:, 11:] != after[:, 11:]).any(-1).all()


class Uses(TorchFunctionMode):
    """Which parameters the plain operations take, and the shape of the activation next to them."""

    def __init__(self):
        super().__init__()
        self.uses = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.nn.Parameter)]
        self.uses += [(func, args[0].shape, id(parameter)) for parameter in given]
        return func(*args, **kwargs)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_used_by_a_visible_operation_with_the_sample_axis_in_front(family):
    model = small(family, fused_head=False)
    tokens, targets = tokens_and_targets(n=3, t=24)
    with Uses() as seen:
        model.loss(tokens, targets)
    assert {use[2] for use in seen.uses} == {id(parameter) for parameter in model.parameters()}
    assert {use[0] for use in seen.uses} == {F.linear, F.embedding, F.layer_norm}
    assert {shape[:2] for _, shape, _ in seen.uses} == {(3, 24)}
    twice = 1 if family == "gpt2" else 0  # the tied table
    assert len(seen.uses) == len(list(model.parameters())) + twice


class FloatTypes(TorchDispatchMode):
    """The floating dtypes of all results."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        leaves = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.seen |= {leaf.dtype for leaf in leaves if leaf.is_floating_point()}
        return result


@pytest.mark.parametrize("family", FAMILIES)
def test_a_float64_model_stays_in_float64(family):
    model = small(family).double()
    tokens, targets = tokens_and_targets()
    with FloatTypes() as dtypes:
        model.loss(tokens, targets).backward()
    assert dtypes.seen == {torch.float64}


@pytest.mark.parametrize("family", FAMILIES)
def test_under_bf16_autocast_the_loss_and_the_gradients_are_fp32(family):
    """bf16 has 8 bits: each logit is off by 2^-8 of itself or so, and the mean over 68 tokens is no
    worse than one.
    """
    model = moved(small(family))
    tokens, targets = tokens_and_targets()
    exact = model.loss(tokens, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(tokens).dtype == torch.bfloat16
        loss = model.loss(tokens, targets)
        per_token = model.loss(tokens, targets, reduction="none")
    loss.backward()
    assert loss.dtype == per_token.dtype == torch.float32
    assert abs(loss / exact - 1) < 2**-7
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bf16_model_gives_its_loss_in_fp32(family):
    model = small(family).bfloat16()
    tokens, targets = tokens_and_targets()
    assert model(tokens).dtype == torch.bfloat16
    log_p = model(tokens).float().log_softmax(-1)
    kept = targets != models.IGNORED_TARGET
    expected = -log_p.gather(-1, targets.clamp(min=0)[..., None])[..., 0][kept].sum()
    loss = model.loss(tokens, targets)
    assert loss.dtype == torch.float32
    assert relative_rms(loss, expected) < 1e-6  # 68 float32 terms


def check_compiled(family, backend):
    """Compiled kernels may fuse differently, so float32 agrees to a few hundred roundings: 1e-5 of
    a gradient.
    """
    model = moved(small(family, n_layer=1))
    tokens, targets = tokens_and_targets()
    documents = (torch.arange(24) >= 10).long().expand(3, 24)
    for document_ids in (None, documents):
        model.zero_grad()
        model.loss(tokens, targets, document_ids=document_ids).backward()
        truth = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        model.zero_grad()
        torch.compile(model.loss, fullgraph=True, backend=backend)(
            tokens, targets, document_ids=document_ids
        ).backward()
        scale = max(gradient.norm() for gradient in truth.values())
        for name, parameter in model.named_parameters():
            assert (parameter.grad - truth[name]).norm() < 1e-5 * scale, name


@pytest.mark.parametrize("family", FAMILIES)
def test_compiles_without_a_graph_break(family):
    check_compiled(family, "aot_eager")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.* is deprecated:DeprecationWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_compiles_with_inductor(family):
    check_compiled(family, "inductor")


def test_compiling_in_place_reaches_the_forward_inside_the_loss():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    model = small("gpt2", n_layer=1)
    tokens, targets = tokens_and_targets()
    expected = model.loss(tokens, targets)
    model.compile(fullgraph=True, backend=backend)
    assert torch.equal(model.loss(tokens, targets), expected)
    assert len(graphs) == 1


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_forward_mode_and_vmap_see_through_the_model(family):
    """The derivative of each sample's loss along a direction of the weights: backwards one by one
    are the oracle.

    1e-11, not FLOAT64: the sum over all weights cancels a few digits.
    """
    model = moved(small(family, n_layer=2).double())
    tokens, targets = tokens_and_targets()
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    direction = {name: torch.randn_like(weight) for name, weight in weights.items()}

    def sample_losses(weights, tokens, targets):
        logits = torch.func.functional_call(model, weights, (tokens,))
        return F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").sum(1)

    def sample_loss(weights, tokens, targets):
        return sample_losses(weights, tokens[None], targets[None])[0]

    with sdpa_kernel(SDPBackend.MATH):
        _, forwards = torch.func.jvp(
            lambda w: sample_losses(w, tokens, targets), (weights,), (direction,)
        )
        gradients = torch.func.vmap(torch.func.grad(sample_loss), in_dims=(None, 0, 0))(
            weights, tokens, targets
        )
    backwards = sum(gradients[name].flatten(1) @ direction[name].flatten() for name in weights)
    for sample in range(3):
        model.zero_grad()
        model.loss(tokens[sample : sample + 1], targets[sample : sample + 1]).backward()
        expected = sum(
            (parameter.grad * direction[name]).sum() for name, parameter in model.named_parameters()
        )
        assert relative_rms(forwards[sample], expected) < 1e-11
        assert relative_rms(backwards[sample], expected) < 1e-11


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


def test_dropout_acts_in_training_only():
    model = moved(small("gpt2", dropout=0.5))
    tokens, _ = tokens_and_targets()
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    twin = small("gpt2", dropout=0.0)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(model(tokens), twin(tokens))


@pytest.mark.parametrize("place", ["embeddings", "attention weights", "residual branches"])
def test_dropout_acts_in_each_of_its_places(place):
    model = moved(small("gpt2", n_layer=1, dropout=0.5)).eval()
    parts = {
        "embeddings": model.drop,
        "attention weights": model.h[0].attn,
        "residual branches": model.h[0].drop,
    }
    tokens, _ = tokens_and_targets()
    assert torch.equal(model(tokens), model(tokens))
    parts[place].train()
    assert not torch.equal(model(tokens), model(tokens))


def test_rotation_is_a_product_of_complex_numbers():
    """Number j and number j + width / 2 of a head are one complex number; token t turns it by t
    base^(-2 j / width).
    """
    config = models.config("pythia", "tiny", rotary_pct=0.5, rotary_base=100.0, **SHAPE)
    width, c = 8, 16
    x = torch.randn(2, 4, 24, c, dtype=torch.float64)
    cos, sin = (table[:24] for table in rotary_tables(config))
    angles = torch.arange(24.0, dtype=torch.float64)[:, None] * 100.0 ** (
        -torch.arange(4, dtype=torch.float64) / 4
    )
    turned = torch.complex(x[..., :4], x[..., 4:8]) * torch.polar(torch.ones_like(angles), angles)
    expected = torch.cat((turned.real, turned.imag, x[..., width:]), dim=-1)
    # The tables are float32, and angles of up to 23 are off by 23 * 2^-24.
    assert relative_rms(rotate(x, cos, sin), expected) < 1.4e-6
    assert rotate(x.bfloat16(), cos, sin).dtype == torch.bfloat16


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
