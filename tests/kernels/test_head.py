"""The head fused with its loss, in plain PyTorch, against float64 autograd.

Any chunking, weights and ignored targets.
"""

import pytest
import torch
import torch.nn.functional as F

import inrun_kernels
from inrun_kernels.head import chunks
from tests.support.kernel_oracles import UNIT_ROUNDOFF, error, tolerance

N, T, D, VOCAB, K = 3, 10, 12, 47, 2
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def problem(dtype: torch.dtype):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x, w, V = (
        torch.randn(N, T, D).to(dtype),
        torch.randn(VOCAB, D).to(wide) * 0.5,
        torch.randn(K, VOCAB, D).to(wide),
    )
    targets = torch.randint(0, VOCAB, (N, T))
    targets[0, 3] = targets[2, 0] = -100
    return x, w, V, targets


def oracle(x, w, V, targets, weights):
    """(token losses, dx, wgrad, dots) by float64 autograd, one sample at a time.

    w as the products see it.
    """
    x, w, V = x.double().requires_grad_(), w.to(x.dtype).double().requires_grad_(), V.double()
    losses, dots, total = [], torch.zeros(K, N, dtype=torch.float64), torch.zeros_like(w)
    dx = torch.zeros_like(x)
    for n in range(N):
        token = F.cross_entropy(F.linear(x[n], w), targets[n], reduction="none", ignore_index=-100)
        gx, gw = torch.autograd.grad((token * weights[n].double()).sum(), (x, w))
        losses.append(token.detach())
        dx, total = dx + gx, total + gw
        dots[:, n] = (gw * V).sum((1, 2))
    return torch.stack(losses), dx, total, dots


def shrink(monkeypatch, tokens: int, itemsize: int) -> None:
    monkeypatch.setattr(chunks, "LOGITS_BYTES", tokens * VOCAB * itemsize)
    monkeypatch.setattr(chunks, "SOFTMAX_BYTES", 3 * VOCAB * 8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [4, 10, 25, 1000])
def test_pieces_of_a_sample_and_groups_of_samples_give_the_same_head(dtype, tokens, monkeypatch):
    shrink(monkeypatch, tokens, dtype.itemsize)
    x, w, V, targets = problem(dtype)
    head = inrun_kernels.linear_cross_entropy_dots(x, w, targets, V)
    expected = oracle(x, w, V, targets, torch.full((N, T), 1 / (N * T - 2), dtype=torch.float64))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    # Logits of size sqrt(D)/2, rounded to dtype, then softmax gradients, then each chunk's
    # products.
    rounded = dtype if dtype in (torch.float16, torch.bfloat16) else None
    allowed = 4 * tolerance(T + VOCAB * D, dtype=wide, rounded=rounded)
    for actual, exact in zip(head, expected):
        assert error(actual, exact) < allowed
    assert head.dx.dtype == dtype
    assert head.wgrad.dtype == head.dots.dtype == head.token_losses.dtype == wide


@pytest.mark.parametrize("turned", [False, True], ids=["contiguous", "transposed"])
@pytest.mark.parametrize("tokens", [4, 10, 25, 1000])
def test_kept_gradients_and_their_dots_are_the_same_in_pieces_of_a_sample_and_groups_of_samples(
    tokens, turned, monkeypatch
):
    shrink(monkeypatch, tokens, 8)
    x, w, V, targets = problem(torch.float64)
    placed = x.transpose(0, 1).contiguous().transpose(0, 1) if turned else x.clone()
    loss, own_dx, g = inrun_kernels.cross_entropy_sum_per_sample(placed, w, targets)
    own_dots = inrun_kernels.cross_entropy_sum_dots(placed, w, targets, V)
    losses, dx, wgrad, dots = oracle(x, w, V, targets, torch.ones(N, T, dtype=torch.float64))
    each = [
        oracle(x, w, V, targets, alone[:, None].expand(N, T))[2]
        for alone in torch.eye(N, dtype=torch.float64)
    ]
    pairs = [
        (loss, losses.sum()),
        (own_dx, dx),
        (g, torch.stack(each)),
        (g.sum(0), wgrad),
        (own_dots, dots),
    ]
    for actual, exact in pairs:
        assert error(actual, exact) < 1e-13


def test_weights_scale_each_tokens_share():
    x, w, V, targets = problem(torch.float64)
    weights = torch.rand(N, T, dtype=torch.float64)
    weights[1, 4] = 0
    head = inrun_kernels.linear_cross_entropy_dots(x, w, targets, V, weights=weights)
    for actual, exact in zip(head, oracle(x, w, V, targets, weights)):
        assert error(actual, exact) < 1e-13
    assert (head.dx[1, 4] == 0).all(), "a token of weight 0 has no gradient"
    assert head.token_losses[1, 4] > 0, "but a loss"
    assert (head.dx[0, 3] == 0).all()
    assert head.token_losses[0, 3] == 0


def test_the_formula_agrees_with_float64_autograd():
    x, w, V, targets = problem(torch.float64)
    with inrun_kernels.use("reference"):
        head = inrun_kernels.linear_cross_entropy_dots(x, w, targets, V)
    for actual, exact in zip(
        head, oracle(x, w, V, targets, torch.full((N, T), 1 / (N * T - 2), dtype=torch.float64))
    ):
        assert error(actual, exact) < 1e-13


def test_losses_of_certain_and_of_hopeless_targets_neither_vanish_nor_overflow():
    w = torch.eye(4)
    x = torch.tensor([[[200.0, 0, 0, 0], [200.0, 0, 0, 0], [0, 0, 0, 0]]])
    losses = inrun_kernels.linear_cross_entropy_dots(
        x, w, torch.tensor([[0, 1, 2]]), w[None]
    ).token_losses
    expected = torch.tensor([[0.0, 200.0, torch.log(torch.tensor(4.0))]])
    assert torch.allclose(losses, expected, rtol=2 * UNIT_ROUNDOFF[torch.float32], atol=0)


def test_gradient_scales_with_the_incoming_one_and_survives_a_second_backward():
    x, w, V, targets = problem(torch.float64)
    x, w = x.requires_grad_(), w.requires_grad_()
    probe = torch.zeros(K, N, dtype=torch.float64, requires_grad=True)
    loss = inrun_kernels.linear_cross_entropy(x, w, targets, V, probe)
    once = torch.autograd.grad(loss, (x, w, probe), retain_graph=True)
    copies = [g.clone() for g in once]
    thrice = torch.autograd.grad(3 * loss, (x, w, probe), retain_graph=True)
    again = torch.autograd.grad(loss, (x, w, probe))
    for g, g3, g1 in zip(copies, thrice, again):
        assert error(g3, 3 * g) < 1e-15
        assert torch.equal(g1, g)


def test_accumulating_into_grad_twice_is_either_right_or_raises():
    x, w, V, targets = problem(torch.float64)
    w = w.requires_grad_()
    probe = torch.zeros(K, N, dtype=torch.float64, requires_grad=True)
    loss = inrun_kernels.linear_cross_entropy(x, w, targets, V, probe)
    loss.backward(retain_graph=True)
    expected = w.grad.clone()
    loss.backward(retain_graph=True)
    assert error(w.grad, 2 * expected) < 1e-15
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_loss_alone_equals_the_loss_with_gradients(monkeypatch):
    shrink(monkeypatch, 7, 8)
    x, w, V, targets = problem(torch.float64)
    w = w.requires_grad_()
    probe = torch.zeros(K, N, dtype=torch.float64, requires_grad=True)
    with_gradient = inrun_kernels.linear_cross_entropy(x, w, targets, V, probe)
    with torch.no_grad():
        alone = inrun_kernels.linear_cross_entropy(x, w, targets, V, probe)
    expected = F.cross_entropy(F.linear(x, w).flatten(0, 1), targets.flatten(), ignore_index=-100)
    assert not alone.requires_grad
    assert error(alone, expected) < 1e-15
    assert error(with_gradient, expected) < 1e-15


@pytest.mark.parametrize("tokens", [4, 10, 25])
def test_no_more_than_one_chunk_of_logits_is_ever_allocated(tokens, monkeypatch):
    x, w, V, targets = problem(torch.float32)
    shrink(monkeypatch, tokens, 4)
    empty, made = torch.empty, []
    monkeypatch.setattr(torch, "empty", lambda *s, **k: made.append(empty(*s, **k)) or made[-1])
    inrun_kernels.linear_cross_entropy_dots(x, w, targets, V)
    rows = [y.shape[0] for y in made if y.ndim == 2 and y.shape[1] == VOCAB]
    assert rows
    assert max(rows) <= tokens


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda x, w, t: (x[0], w, t), ValueError, r"\[n,t,i\]"),
        (lambda x, w, t: (x, w, t[:, 1:]), ValueError, r"\[n,t\]"),
        (lambda x, w, t: (x, w, t.int()), TypeError, "int64"),
        (lambda x, w, t: (x[:, :0], w, t[:, :0]), ValueError, "no token"),
        (lambda x, w, t: (x, w[:5], t), ValueError, "V"),
        (lambda x, w, t: (x, w, t + VOCAB), RuntimeError, "out of bounds"),
    ],
)
def test_what_does_not_fit_is_refused(change, kind, message):
    x, w, V, targets = problem(torch.float32)
    with pytest.raises(kind, match=message):
        inrun_kernels.linear_cross_entropy_dots(*change(x, w, targets), V)
