"""The audit passes what is right and says what it could not test; training does not notice it."""

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from inrun.attributor import NonFiniteError
from tests.support.audit_case import N, net, one_step


@pytest.fixture(autouse=True)
def _numbers():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def classes(model, x):
    y, weight = torch.randint(0, 3, (N,)), torch.rand(3)
    return lambda: F.cross_entropy(model(x), y, weight=weight)


def as_many_classes_as_samples(model, x):
    model[2] = nn.Linear(7, N)
    y, weight = torch.randint(0, N, (N,)), torch.rand(N)
    return lambda: F.cross_entropy(model(x), y, weight=weight)


def cut_out_of_a_data_set(model, x):
    data, picked = torch.randn(50, 5), torch.randint(0, 50, (N,))
    return lambda: model(data[picked]).square().mean()


def put_together_inside(model, x):
    rows = [torch.randn(5) for _ in range(N)]
    return lambda: model(torch.stack(rows)).square().mean()


def drawn_inside(model, x):
    generator = torch.Generator().manual_seed(3)
    return lambda: model(torch.randn(N, 5, generator=generator)).square().mean()


def noisy(model, x):
    generator = torch.Generator().manual_seed(3)
    return lambda: (
        model(F.dropout(x, 0.3) + torch.empty(N, 5).normal_(generator=generator)).square().mean()
    )


def without_labels(model, x):
    y = torch.tensor([0, 1, -100, 2, 1, -100])
    return lambda: F.cross_entropy(model(x), y)


def pixels(model, x):
    bytes_ = torch.randint(0, 255, (N, 5), dtype=torch.uint8)
    return lambda: model(bytes_.double() / 255).square().mean()


def root_of_the_mean(model, x):
    return lambda: model(x).square().mean().sqrt()


def written_in_place(model, x):
    def loss():
        h = x.new_zeros(N, 5)
        h[:, 1:] = x[:, 1:]
        h += x
        h[h > 1] = 0.5
        return model(h).square().mean()

    return loss


def the_largest(model, x):
    def loss():
        h = model(x)
        top = h.topk(2, 1)
        return top.values.square().sum() + h.gather(1, h.argmax(1, keepdim=True)).sum()

    return loss


def checkpointed(model, x):
    return lambda: checkpoint(model, x, use_reentrant=False).square().mean()


def in_bf16(model, x):
    def loss():
        with torch.autocast("cpu", torch.bfloat16):
            return model(x.float()).float().square().mean()

    model.float()
    return loss


def unpacked(model, x):
    def loss():
        left, right = x.T.contiguous().T.unsqueeze(1).expand(N, 2, 5).unbind(1)
        first, *others = model(left + right).T
        return first.square().mean() + sum(other.mean() for other in others)

    return loss


@pytest.mark.parametrize(
    "case",
    [
        classes,
        as_many_classes_as_samples,
        cut_out_of_a_data_set,
        put_together_inside,
        drawn_inside,
        noisy,
        without_labels,
        pixels,
        root_of_the_mean,
        written_in_place,
        the_largest,
        checkpointed,
        in_bf16,
        unpacked,
    ],
    ids=lambda case: case.__name__.replace("_", " "),
)
def test_right_values_pass(case, caplog):
    model, x = net(), torch.randn(N, 5)
    loss = case(model, x)
    target = x.to(torch.float32 if case is in_bf16 else torch.float64)
    with caplog.at_level(logging.INFO, "inrun"):
        one_step(model, loss, val=lambda: model(target).square().mean())
    assert f"audited {N} samples in 4 tests" in caplog.text
    assert "unproven" not in caplog.text


@pytest.mark.parametrize("length", [1, 4])
def test_token_ids_that_are_labels_too_pass(length, caplog):
    table, head = nn.Embedding(9, 5), nn.Linear(5, 9)
    model = nn.ModuleList([table, head])
    tokens = torch.randint(0, 9, (N, length))
    loss = lambda: F.cross_entropy(head(table(tokens)).flatten(0, 1), tokens.flatten())  # noqa: E731
    with caplog.at_level(logging.INFO, "inrun"):
        one_step(model, loss, val=loss)
    assert f"audited {N} samples" in caplog.text


def test_labels_that_are_shifted_into_the_ids_of_a_decoder_pass(caplog):
    table, head = nn.Embedding(9, 5), nn.Linear(5, 9)
    model = nn.ModuleList([table, head])
    labels = torch.randint(2, 9, (N, 4))

    def loss():
        ids = labels.new_zeros(labels.shape)
        ids[:, 1:] = labels[:, :-1].clone()
        ids[:, 0] = 1
        ids.masked_fill_(ids == -100, 0)
        return F.cross_entropy(head(table(ids)).flatten(0, 1), labels.flatten())

    with caplog.at_level(logging.INFO, "inrun"):
        one_step(model, loss, val=loss)
    assert f"audited {N} samples" in caplog.text


def test_masks_that_vmap_makes_pass(caplog):
    model, x = net(), torch.randn(N, 5)
    kept = torch.rand(N, 7) > 0.3

    def loss():
        mask = torch.func.vmap(lambda row: row & torch.ones_like(row))(kept)
        return model[2](model[1](model[0](x)) * mask).square().mean()

    with caplog.at_level(logging.INFO, "inrun"):
        one_step(model, loss)
    assert f"audited {N} samples" in caplog.text


def test_not_a_number_in_a_sample_is_left_to_the_error_that_names_it(caplog):
    model, x = net(), torch.randn(N, 5)
    x[2, 3] = torch.nan
    with pytest.raises(NonFiniteError, match="12"):
        one_step(model, lambda: model(x).square().mean())


def test_parameters_behind_code_that_is_not_seen_are_said_to_be_unproven(caplog):
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, h):
            return 2 * h

        @staticmethod
        def backward(ctx, b):
            return 2 * b

    model, x = net(), torch.randn(N, 5)
    one_step(model, lambda: model[2](Double.apply(model[1](model[0](x)))).square().mean())
    assert "could not test parameters 0.weight, 0.bias" in caplog.text
    assert "not seen" in caplog.text


# -- training does not notice


def test_training_and_random_state_are_the_same_bits_with_the_audit():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.body = nn.Embedding(9, 5, max_norm=0.5), net()
            self.register_buffer("seen", torch.zeros(5))

        def forward(self, ids):
            h = F.dropout(self.table(ids), 0.2)
            self.seen.add_(h.detach().mean((0, 1)))
            return self.body(h)

    def left_behind(audit):
        torch.manual_seed(1)
        model, ids = Model(), torch.randint(0, 9, (N, 4))
        seen = []
        model.table.weight.register_hook(lambda g: seen.append(g.norm().item()))

        def loss():
            h = model(ids)
            h.register_hook(lambda g: seen.append(g.norm().item()))
            return h.square().mean()

        fixed = model.body
        val = lambda: fixed(torch.ones(2, 5)).square().mean()  # noqa: E731
        attr = one_step(model, loss, steps=2, val=val, audit=audit)
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        return state | {"random": torch.get_rng_state(), "values": attr.last["val"]}, seen

    (plain, calls), (audited, calls_too) = left_behind(False), left_behind(True)
    assert all(torch.equal(plain[name], audited[name]) for name in plain)
    assert calls == calls_too
