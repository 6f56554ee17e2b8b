"""Small models, off their initial values, and Hugging Face's beside them; used by tests/models.

Tolerances. Two correct float64 implementations differ by the order of sums only: a few hundred
roundings of 1.1e-16 each, so FLOAT64 = 1e-13 relative RMS. Hugging Face's eager GPT-NeoX computes
its softmax in float32 whatever the model's dtype, with a relative error of about 2^-24 per
attention weight: FLOAT32_SOFTMAX = 2^-22.
"""

import pytest
import torch

from inrun import models

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
