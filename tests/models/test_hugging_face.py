"""The models against Hugging Face's in float64, and checkpoints both ways."""

import pytest
import torch

from inrun import models
from tests.support.model_cases import (
    FAMILIES,
    FLOAT32_SOFTMAX,
    FLOAT64,
    SHAPE,
    hugging_face,
    moved,
    relative_rms,
    small,
    tokens_and_targets,
)


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
