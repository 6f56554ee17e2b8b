"""The head's second derivatives against torch's own, over chunks and ignored tokens."""

import pytest
import torch

import inrun_kernels
from inrun_kernels.head import chunks


def case(dtype=torch.float64):
    torch.manual_seed(0)
    x = torch.randn(3, 5, 8, dtype=dtype, requires_grad=True)
    w = torch.randn(17, 8, dtype=dtype, requires_grad=True)
    targets = torch.randint(0, 17, (3, 5))
    targets[1, 2:] = -100
    return x, w, targets, torch.randn_like(x), torch.randn_like(w)


def derivatives(function, x, w, targets, vx, vw):
    loss = function(x, w, targets) / 7
    first = torch.autograd.grad(loss, (x, w), create_graph=True)
    return loss, *first, *torch.autograd.grad(first, (x, w), (vx, vw))


@pytest.mark.parametrize("tokens", [100, 4, 1])
def test_hessian_vector_products_are_torchs_own(monkeypatch, tokens):
    x, w, targets, vx, vw = case()
    monkeypatch.setattr(chunks, "LOGITS_BYTES", tokens * 17 * 8)
    monkeypatch.setattr(chunks, "SOFTMAX_BYTES", 2 * 3 * 17 * 8)
    ours = derivatives(inrun_kernels.cross_entropy_sum_twice, x, w, targets, vx, vw)
    truth = derivatives(inrun_kernels.cross_entropy_sum_composite, x, w, targets, vx, vw)
    for own, true in zip(ours, truth):
        torch.testing.assert_close(own, true, rtol=1e-12, atol=1e-13)


def test_a_cotangent_that_does_not_exist_is_zero():
    x, w, targets, vx, _ = case()

    def of_inputs(function):
        (dx,) = torch.autograd.grad(function(x, w, targets), x, create_graph=True)
        return torch.autograd.grad(dx, (x, w), vx)

    for own, true in zip(
        of_inputs(inrun_kernels.cross_entropy_sum_twice),
        of_inputs(inrun_kernels.cross_entropy_sum_composite),
    ):
        torch.testing.assert_close(own, true, rtol=1e-12, atol=1e-13)


def test_the_incoming_gradient_is_differentiated_too():
    x, w, targets, _, vw = case()

    def square(function):
        dw = torch.autograd.grad(function(x, w, targets) ** 2, w, create_graph=True)[0]
        return torch.autograd.grad(dw, (x, w), vw)

    for own, true in zip(
        square(inrun_kernels.cross_entropy_sum_twice),
        square(inrun_kernels.cross_entropy_sum_composite),
    ):
        torch.testing.assert_close(own, true, rtol=1e-12, atol=1e-13)


def test_under_autocast_products_are_in_bfloat16_and_sums_are_not():
    x, w, targets, vx, vw = case(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours = derivatives(inrun_kernels.cross_entropy_sum_twice, x, w, targets, vx, vw)
    truth = derivatives(
        inrun_kernels.cross_entropy_sum_composite,
        *(t.double() if t.is_floating_point() else t for t in (x, w, targets, vx, vw)),
    )
    for own, true in zip(ours, truth):
        # a few roundings to 8 bits each, of terms that partly cancel
        assert (own - true).norm() < 8 * 2**-8 * true.norm()
