"""Three lines for anybody's model: Hugging Face architectures, adapters, conv nets, and every
operation's rule, against a loop of per-sample gradients.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from inrun import Attributor
from tests.support import per_sample
from tests.support.adapters import VOCAB, ConvNet, LoRA, MergedLoRA, Reused, T

transformers = pytest.importorskip("transformers")

N = 4


def language_model(name: str) -> nn.Module:
    small = {"vocab_size": VOCAB, "max_position_embeddings": 16}
    configs = {
        "gpt2": lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=VOCAB,
                n_positions=16,
                n_embd=16,
                n_layer=2,
                n_head=2,
                resid_pdrop=0,
                embd_pdrop=0,
                attn_pdrop=0,
            )
        ),
        "gpt_neox": lambda: transformers.GPTNeoXForCausalLM(
            transformers.GPTNeoXConfig(
                **small,
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=32,
            )
        ),
        "llama": lambda: transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                **small,
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                intermediate_size=24,
            )
        ),
        "qwen2-tied": lambda: transformers.Qwen2ForCausalLM(
            transformers.Qwen2Config(
                **small,
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                intermediate_size=24,
                tie_word_embeddings=True,
            )
        ),
    }
    model = configs[name]().double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def language_loss(model, tokens):
    # Hugging Face's own loss casts logits to float32; in float64 the cross-entropy is computed from
    # the logits
    logits = model(tokens).logits[:, :-1]
    return F.cross_entropy(
        logits.reshape(-1, VOCAB), tokens[:, 1:].reshape(-1), reduction="sum"
    ) / (N * (T - 1))


def value_and_compare(
    model, losses, batch_loss, val_loss, methods=("first_order", "second_order"), bound=1e-10
):
    """`losses`: closures of each sample's share; their sum is `batch_loss()`."""
    lr = 0.1
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=lr)
    truth, by_name = per_sample.first_order(model, losses, val_loss, lr)
    attr = Attributor(model, optimizer, {"val": val_loss}, list(methods))
    with attr.batch(range(len(losses))):
        batch_loss().backward()
    optimizer.step()
    attr.close()
    assert per_sample.relative_error(attr.last_step.values["first_order", "val"], truth) < bound
    for name, part in attr.last_step.per_parameter["first_order", "val"].items():
        if by_name[name].norm() > 1e-12:
            assert per_sample.relative_error(part, by_name[name]) < bound, name
    return attr


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "llama", "qwen2-tied"])
def test_hugging_face_language_models_take_three_lines(name):
    model = language_model(name)
    tokens, val = torch.randint(0, VOCAB, (N, T)), torch.randint(0, VOCAB, (2, T))
    losses = [lambda i=i: language_loss(model, tokens[i : i + 1]) for i in range(N)]
    value_and_compare(
        model, losses, lambda: language_loss(model, tokens), lambda: language_loss(model, val)
    )


def test_hugging_faces_own_loss_and_padding_need_nothing_special():
    model = language_model("gpt2").float()
    tokens, val = torch.randint(0, VOCAB, (N, T)), torch.randint(0, VOCAB, (2, T))
    mask = torch.ones_like(tokens)
    mask[1, 6:] = 0
    labels = tokens.masked_fill(mask == 0, -100)
    counted = (labels[:, 1:] != -100).sum()

    def share(i):
        own = model(
            tokens[i : i + 1], attention_mask=mask[i : i + 1], labels=labels[i : i + 1]
        ).loss
        return own * (labels[i, 1:] != -100).sum() / counted

    whole = lambda: model(tokens, attention_mask=mask, labels=labels).loss  # noqa: E731
    # fp32: the two sides sum the same products in another order, over up to n t = 36 terms per
    # weight
    value_and_compare(
        model,
        [lambda i=i: share(i) for i in range(N)],
        whole,
        lambda: model(val, labels=val).loss,
        ["first_order"],
        bound=1e-4,
    )


@pytest.mark.parametrize("build", ["lora", "merged-lora", "reused"])
def test_adapters_reused_layers_and_parameters_in_arithmetic(build):
    torch.manual_seed(1)
    if build == "reused":
        model = Reused()
    else:
        kind = LoRA if build == "lora" else MergedLoRA
        model = nn.Sequential(
            nn.Embedding(VOCAB, 8).requires_grad_(False),
            kind(nn.Linear(8, 8), 2),
            nn.LayerNorm(8),
            kind(nn.Linear(8, VOCAB), 3),
        )
    model = model.double()
    tokens, val = torch.randint(0, VOCAB, (N, T)), torch.randint(0, VOCAB, (3, T))

    def loss(x):
        return (
            F.cross_entropy(
                model(x)[:, :-1].reshape(-1, VOCAB), x[:, 1:].reshape(-1), reduction="sum"
            )
            / 50
        )

    value_and_compare(
        model,
        [lambda i=i: loss(tokens[i : i + 1]) for i in range(N)],
        lambda: loss(tokens),
        lambda: loss(val),
    )


def test_a_residual_conv_net_with_every_kind_of_convolution():
    model = ConvNet().double()
    x, y, xv, yv = (
        torch.randn(N, 3, 10, 12).double(),
        torch.randint(0, 5, (N,)),
        torch.randn(2, 3, 10, 12).double(),
        torch.randint(0, 5, (2,)),
    )
    model(x)
    loss = lambda x, y: F.cross_entropy(model(x), y, reduction="sum") / N  # noqa: E731
    value_and_compare(
        model,
        [lambda i=i: loss(x[i : i + 1], y[i : i + 1]) for i in range(N)],
        lambda: loss(x, y),
        lambda: loss(xv, yv),
    )


def test_a_vision_transformer_with_class_token_and_position_table():
    config = transformers.ViTConfig(
        image_size=8,
        patch_size=4,
        num_channels=3,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        num_labels=5,
    )
    model = transformers.ViTForImageClassification(config).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    x, y, xv, yv = (
        torch.randn(N, 3, 8, 8).double(),
        torch.randint(0, 5, (N,)),
        torch.randn(2, 3, 8, 8).double(),
        torch.randint(0, 5, (2,)),
    )
    loss = lambda x, y: F.cross_entropy(model(x).logits, y, reduction="sum") / N  # noqa: E731
    value_and_compare(
        model,
        [lambda i=i: loss(x[i : i + 1], y[i : i + 1]) for i in range(N)],
        lambda: loss(x, y),
        lambda: loss(xv, yv),
    )


def test_an_mlp_regressor_with_squared_error():
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(inplace=True), nn.Linear(16, 1)).double()
    x, y, xv, yv = (torch.randn(6, s, dtype=torch.float64) for s in (4, 1, 4, 1))
    value_and_compare(
        model,
        [lambda i=i: ((model(x[i]) - y[i]) ** 2).sum() / 6 for i in range(6)],
        lambda: F.mse_loss(model(x), y),
        lambda: F.mse_loss(model(xv), yv),
    )


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_universal_route_agrees_with_the_rules_on_every_method(name):
    results = []
    for route in ("tap", "forward"):
        torch.manual_seed(2)
        model = language_model(name)
        tokens, val = torch.randint(0, VOCAB, (N, T)), torch.randint(0, VOCAB, (2, T))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        # warm moments: elements without state would be smoothed over coalitions, which needs the
        # rules' per-sample gradients
        for p in model.parameters():
            optimizer.state[p] = {
                "step": torch.tensor(7.0),
                "exp_avg": 0.01 * torch.ones_like(p),
                "exp_avg_sq": 1e-3 * torch.ones_like(p),
            }
        attr = Attributor(
            model,
            optimizer,
            {"val": lambda m=model, v=val: language_loss(m, v)},
            ["first_order", "second_order", "path"],
            route=route,
        )
        for ids in ([0, 1], [2, 3]):
            forward = lambda m=model, i=ids, t=tokens: language_loss(m, t[i])  # noqa: E731
            with attr.batch(ids, forward=forward):
                forward().backward()
        optimizer.step()
        results.append(attr.last_step.values)
    for key in results[0]:
        # Llama's norm and rotary tables are float32 in Hugging Face's code, whatever the model's
        # dtype
        assert per_sample.relative_error(results[1][key], results[0][key]) < (
            1e-9 if name == "gpt2" else 1e-5
        ), key
