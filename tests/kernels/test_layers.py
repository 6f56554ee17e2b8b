"""Layers whose backward yields dots, in every dtype and backend, against a loop of gradients."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

import inrun_kernels
from tests.support.kernel_oracles import UNIT_ROUNDOFF, error, tolerance
from tests.support.tiny_layers import LENGTH, D, K, N, O, T, Tiny, close


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        ("torch", torch.float64),
        ("torch", torch.float32),
        ("reference", torch.float64),
        ("triton", torch.float32),
    ],
)
def test_probe_gradient_is_the_sum_of_all_layers_dots(backend, dtype):
    if backend == "triton":
        pytest.importorskip("triton")
    model = Tiny(dtype)
    with inrun_kernels.use(backend):
        loss = model.fused(model.probe)
        gradients = model.gradients(loss)
    assert error(loss, model.plain(slice(None))) < tolerance(LENGTH, dtype=dtype)
    # Six layers one after the other, each with its own rounding.
    close(gradients, model.expected(), 6 * tolerance(LENGTH, dtype=dtype))


def test_autocast_computes_in_its_dtype_and_sums_in_float32():
    model = Tiny(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = inrun_kernels.linear(
            torch.randn(N, T, D), model.p["w"], model.p["b"], model.V["w"], model.probe
        )
        loss = model.fused(model.probe)
    assert y.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    gradients = model.gradients(loss)
    assert {g.dtype for g in gradients} == {torch.float32}
    # Errors of activations rounded to bfloat16 at six places, amplified by logits of size sqrt(O).
    close(gradients, model.expected(), 6 * O**0.5 * UNIT_ROUNDOFF[torch.bfloat16])


def test_master_weights_get_a_gradient_that_was_not_rounded_to_half():
    x = torch.randn(2, 64, 8).bfloat16()
    w, V = torch.randn(4, 8, requires_grad=True), torch.randn(1, 4, 8)
    probe = torch.zeros(1, 2, requires_grad=True)
    y = inrun_kernels.linear(x, w, None, V, probe)
    b = torch.randn_like(y)
    with inrun_kernels.cost.prefer(wgrad_dots="split"):
        y.backward(b)
    exact = torch.einsum("nto,nti->oi", b.double(), x.double())
    assert (w.grad != w.grad.bfloat16().float()).any()
    assert error(w.grad, exact) < tolerance(128, rounded=torch.bfloat16)


def test_packed_samples_give_the_dots_of_separate_ones():
    offsets = torch.tensor([0, 2, 2, 7])
    x, w, V, bias_V = torch.randn(7, D), torch.randn(O, D), torch.randn(K, O, D), torch.randn(K, O)
    leaves = [v.double().requires_grad_() for v in (x, w, torch.zeros(O), torch.zeros(K, 3))]
    y = inrun_kernels.linear(
        *leaves[:3], V.double(), leaves[3], bias_V=bias_V.double(), offsets=offsets
    )
    b = torch.randn_like(y)
    gx, gw, gbias, dots = torch.autograd.grad(y, leaves, b)
    g = torch.stack([b[s:e].T @ leaves[0][s:e] for s, e in pairwise(offsets)])
    sums = torch.stack([b[s:e].sum(0) for s, e in pairwise(offsets)])
    assert error(gx, b @ leaves[1]) < 1e-14
    assert error(gw, g.sum(0)) < 1e-14
    assert error(gbias, b.sum(0)) < 1e-14
    assert (
        error(dots, torch.einsum("noi,koi->kn", g, V.double()) + bias_V.double() @ sums.T) < 1e-14
    )


def test_frozen_weight_still_yields_dots_and_idle_probe_leaves_the_plain_backward():
    x, w, V = torch.randn(N, T, D), torch.randn(O, D), torch.randn(K, O, D)
    x, w, V = x.double().requires_grad_(), w.double(), V.double()
    probe = torch.zeros(K, N, dtype=torch.float64, requires_grad=True)
    b = torch.randn(N, T, O, dtype=torch.float64)
    (dots,) = torch.autograd.grad(inrun_kernels.linear(x, w, None, V, probe), probe, b)
    assert error(dots, torch.einsum("nto,nti,koi->kn", b, x, V)) < 1e-14
    gx, gw = torch.autograd.grad(
        inrun_kernels.linear(x, w.requires_grad_(), None, V, probe.detach()), (x, w), b
    )
    assert error(gx, b @ w) < 1e-14
    assert error(gw, torch.einsum("nto,nti->oi", b, x)) < 1e-14


def test_a_weight_used_twice_counts_both_uses():
    w = torch.randn(D, D, dtype=torch.float64, requires_grad=True)
    V, x = torch.randn(1, D, D, dtype=torch.float64), torch.randn(N, T, D, dtype=torch.float64)
    probe = torch.zeros(1, N, dtype=torch.float64, requires_grad=True)
    y = inrun_kernels.linear(inrun_kernels.linear(x, w, None, V, probe).tanh(), w, None, V, probe)
    gw, dots = torch.autograd.grad(y.square().sum(), (w, probe))
    total = torch.zeros_like(w)
    for n in range(N):
        loss = F.linear(F.linear(x[n], w).tanh(), w).square().sum()
        (g,) = torch.autograd.grad(loss, w)
        total += g
        assert abs(dots[0, n] - (g * V[0]).sum()) < 1e-12 * g.norm() * V.norm()
    assert error(gw, total) < 1e-14


def test_no_grad_forms_only_the_loss():
    model = Tiny(torch.float64)
    with torch.no_grad():
        assert error(model.fused(model.probe), model.plain(slice(None))) < 1e-14


def test_double_backward_raises_rather_than_being_wrong():
    model = Tiny(torch.float64)
    (g,) = torch.autograd.grad(model.fused(model.probe), model.p["w"], create_graph=True)
    with pytest.raises(RuntimeError, match="autograd"):
        torch.autograd.grad(g.square().sum(), model.p["head"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: inrun_kernels.linear(torch.randn(N, T, 4), m.p["w"], None, m.V["w"], m.probe),
            "inputs",
        ),
        (
            lambda m: inrun_kernels.linear(
                torch.randn(N, T, D), m.p["w"], None, m.V["w"], m.probe[:, :1]
            ),
            "one slot",
        ),
        (
            lambda m: inrun_kernels.linear(
                torch.randn(N, T, D), m.p["w"], None, m.V["w"], m.probe, bias_V=m.V["b"]
            ),
            "without",
        ),
        (
            lambda m: inrun_kernels.embedding(m.ids, m.p["table"], m.V["w"], m.probe),
            "weight's shape",
        ),
        (
            lambda m: inrun_kernels.layer_norm(
                torch.randn(N, T, D), m.p["lw"], None, m.V["lw"], m.probe
            ),
            "must be",
        ),
        (
            lambda m: inrun_kernels.rms_norm(torch.randn(2, T, O), m.p["rw"], m.V["rw"], m.probe),
            "one slot",
        ),
        (
            lambda m: inrun_kernels.linear_cross_entropy(
                torch.randn(N, T, O), m.p["head"], m.ids[:1], m.V["head"], m.probe
            ),
            "targets",
        ),
    ],
)
def test_layers_refuse_shapes_that_do_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call(Tiny(torch.float32))
