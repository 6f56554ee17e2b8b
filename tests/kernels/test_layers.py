"""Layers whose backward yields dots: eager, compiled, checkpointed and under autocast, against a
loop of gradients.
"""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

import inrun_kernels
from tests.support.kernel_oracles import UNIT_ROUNDOFF, error, tolerance

N, T, D, O, VOCAB, ROWS, K = 3, 6, 5, 11, 17, 9, 2
LENGTH = T + VOCAB * O


class Tiny:
    """Embedding, linear, LayerNorm, RMSNorm and a head, once with fused layers and once in plain
    PyTorch.
    """

    def __init__(self, dtype: torch.dtype):
        shapes = {
            "table": (ROWS, D),
            "w": (O, D),
            "b": (O,),
            "lw": (O,),
            "lb": (O,),
            "rw": (O,),
            "head": (VOCAB, O),
        }
        self.p = {
            name: torch.randn(shape, dtype=dtype, requires_grad=True)
            for name, shape in shapes.items()
        }
        self.V = {name: torch.randn((K, *shape), dtype=dtype) for name, shape in shapes.items()}
        self.ids = torch.randint(0, ROWS, (N, T))
        self.targets = torch.randint(0, VOCAB, (N, T))
        self.targets[0, 1] = -100
        self.probe = torch.zeros(K, N, dtype=dtype, requires_grad=True)

    def fused(self, probe: torch.Tensor, wrap=None) -> torch.Tensor:
        p, V = self.p, self.V
        x = inrun_kernels.embedding(self.ids, p["table"], V["table"], probe)

        def block(x):
            x = inrun_kernels.linear(x, p["w"], p["b"], V["w"], probe, bias_V=V["b"])
            x = inrun_kernels.layer_norm(x, p["lw"], p["lb"], V["lw"], probe, bias_V=V["lb"])
            return inrun_kernels.rms_norm(x, p["rw"], V["rw"], probe)

        x = block(x) if wrap is None else wrap(block, x)
        return inrun_kernels.linear_cross_entropy(x, p["head"], self.targets, V["head"], probe)

    def plain(self, samples: slice) -> torch.Tensor:
        p = {name: w.double() for name, w in self.p.items()}
        x = F.linear(F.embedding(self.ids[samples], p["table"]), p["w"], p["b"])
        x = F.rms_norm(F.layer_norm(x, (O,), p["lw"], p["lb"]), (O,), p["rw"], 1e-6)
        z = F.linear(x, p["head"]).flatten(0, 1)
        return F.cross_entropy(
            z, self.targets[samples].flatten(), ignore_index=-100, reduction="sum"
        ) / (N * T - 1)

    def gradients(self, loss: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(loss, [*self.p.values(), self.probe]))

    def expected(self) -> list[torch.Tensor]:
        """Gradients of all parameters, and dots [k,n], in float64, one sample at a time."""
        totals = [torch.zeros_like(w, dtype=torch.float64) for w in self.p.values()]
        dots = torch.zeros(K, N, dtype=torch.float64)
        for n in range(N):
            gradients = torch.autograd.grad(self.plain(slice(n, n + 1)), list(self.p.values()))
            for total, g, direction in zip(totals, gradients, self.V.values()):
                total += g
                dots[:, n] += (g.double() * direction.double()).flatten(1).sum(1)
        return [*totals, dots]


def close(actual, expected, allowed):
    for a, e in zip(actual, expected, strict=True):
        assert error(a, e.double()) < allowed


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


def test_checkpointing_changes_nothing():
    model = Tiny(torch.float64)
    expected = model.gradients(model.fused(model.probe))
    loss = model.fused(model.probe, lambda block, x: checkpoint(block, x, use_reentrant=False))
    assert all(torch.equal(a, b) for a, b in zip(model.gradients(loss), expected, strict=True))


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.script:DeprecationWarning"
)  # inductor's own imports
@pytest.mark.parametrize("mode", ["aot_eager", "inductor"])
def test_compiled_as_one_graph_agrees_with_eager(mode):
    torch._dynamo.reset()
    model = Tiny(torch.float32)
    compiled = torch.compile(model.fused, fullgraph=True, backend=mode)
    close(
        model.gradients(compiled(model.probe)),
        model.gradients(model.fused(model.probe)),
        6 * tolerance(LENGTH),
    )


def test_compiled_checkpointed_graph_agrees_with_eager():
    torch._dynamo.reset()
    model = Tiny(torch.float64)

    def wrapped(probe):
        return model.fused(probe, lambda block, x: checkpoint(block, x, use_reentrant=False))

    compiled = torch.compile(wrapped, fullgraph=True, backend="aot_eager")
    close(model.gradients(compiled(model.probe)), model.gradients(model.fused(model.probe)), 1e-13)


def test_plain_calls_compile_as_one_graph():
    torch._dynamo.reset()
    a, b = torch.randn(N, T, D, dtype=torch.float64), torch.randn(N, T, O, dtype=torch.float64)
    V, offsets = torch.randn(K, O, D, dtype=torch.float64), torch.tensor([0, 4, N * T])

    def calls(a, b, V, offsets):
        packed = a.flatten(0, 1), b.flatten(0, 1), V
        ragged = inrun_kernels.outer_dots(*packed, offsets)
        return (
            *inrun_kernels.wgrad_dots(a, b, V),
            ragged,
            inrun_kernels.ghost_hvp(a, b, a, b),
        )

    compiled = torch.compile(calls, fullgraph=True, backend="aot_eager")
    for actual, expected in zip(compiled(a, b, V, offsets), calls(a, b, V, offsets), strict=True):
        assert torch.equal(actual, expected)


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


def test_every_operator_passes_the_registration_checks():
    m = Tiny(torch.float64)
    x, y = (
        torch.randn(N, T, D, dtype=torch.float64),
        torch.randn(N, T, O, dtype=torch.float64, requires_grad=True),
    )
    p, V, probe, plain = m.p, m.V, m.probe, y.detach()
    ops = torch.ops.inrun
    offsets = torch.tensor([0, 5, N * T])
    cases = [
        (ops.linear, (x.requires_grad_(), p["w"], p["b"], V["w"], V["b"], probe, None)),
        (ops.layer_norm, (y, p["lw"], p["lb"], V["lw"], V["lb"], probe, 1e-5)),
        (ops.rms_norm, (y, p["rw"], V["rw"], probe, 1e-6)),
        (ops.embedding, (m.ids, p["table"], V["table"], probe)),
        (ops.linear_cross_entropy, (y, p["head"], m.targets, V["head"], probe, None, -100)),
        (ops.head_loss, (plain, p["head"].detach(), m.targets, torch.rand(N, T), -100)),
        (ops.wgrad_dots, (x.detach(), plain, V["w"], None)),
        (ops.wgrad_dots, (x.detach().flatten(0, 1), plain.flatten(0, 1), V["w"], offsets)),
        (ops.outer_dots, (x.detach(), plain, V["w"], None)),
        (ops.embedding_dots, (m.ids, x.detach(), V["table"])),
        (
            ops.norm_dots,
            (plain, plain, torch.rand(N, T, dtype=torch.float64), V["lw"], None, V["lb"]),
        ),
        (
            ops.layer_norm_backward,
            (
                plain,
                plain,
                *torch.rand(2, N, T, dtype=torch.float64),
                p["lw"].detach(),
                V["lw"],
                None,
            ),
        ),
        (ops.ghost_hvp, (x.detach(), plain, x.detach(), plain)),
        (ops.pairwise_dots, (x.detach(), plain, x.detach(), plain)),
    ]
    for op, arguments in cases:
        results = opcheck(op.default, arguments)
        assert set(results.values()) == {"SUCCESS"}, (op, results)


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
