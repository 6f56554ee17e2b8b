"""Layers compiled and checkpointed, and what torch asks of every operator."""

import pytest
import torch
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

import inrun_kernels
from tests.support.kernel_oracles import tolerance
from tests.support.tiny_layers import LENGTH, D, K, N, O, T, Tiny, close


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
