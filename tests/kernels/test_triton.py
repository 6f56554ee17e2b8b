"""Every Triton kernel, run by the interpreter on poisoned outputs, against float64.

What the interpreter cannot show (registers, tensor cores, float32 precision modes) is checked by
compiling ahead of time, in a process of its own, for two architectures.
"""

import os
import subprocess
import sys
from itertools import pairwise

import pytest
import torch

pytest.importorskip("triton")

import inrun_kernels
from inrun_kernels import cost
from inrun_kernels.head import chunks
from inrun_kernels.jit import common
from inrun_kernels.sum_dots import sum_dots
from tests.support.kernel_oracles import (
    error,
    narrow,
    operands,
    per_sample_gradients,
    tokens_as_samples,
    tolerance,
    uniform,
)

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Triton for every op, by the fused routes, and NaN in all memory that a kernel fills."""
    empty, new_empty = torch.empty, torch.Tensor.new_empty

    def fill(x):
        return x.fill_(torch.nan) if x.is_floating_point() and x.device.type != "meta" else x

    monkeypatch.setattr(torch, "empty", lambda *shape, **options: fill(empty(*shape, **options)))
    monkeypatch.setattr(
        torch.Tensor,
        "new_empty",
        lambda self, *shape, **options: fill(new_empty(self, *shape, **options)),
    )
    with inrun_kernels.use("triton"), cost.prefer(wgrad_dots="fused", outer_dots="fused"):
        yield


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("n", "t", "i", "o", "k"),
    [
        pytest.param(3, 37, 70, 139, 2, id="odd-sizes-several-tiles"),
        pytest.param(5, 64, 128, 64, 1, id="even-sizes-resident-direction"),
        pytest.param(2, 17, 33, 5, 3, id="narrower-than-a-tile"),
        pytest.param(7, 1, 16, 130, 1, id="one-token"),
    ],
)
def test_flat_form_equals_a_loop_of_gradients(dtype, n, t, i, o, k):
    a, b, V = operands(n, t, i, o, k, dtype)
    g = per_sample_gradients(a.flatten(0, 1), b.flatten(0, 1), uniform(n, t))
    wgrad, dots = inrun_kernels.wgrad_dots(a, b, V)
    assert error(wgrad, g.sum(0)) < tolerance(n * t)
    assert error(dots, torch.einsum("noi,koi->kn", g, V.double())) < tolerance(t + o * i)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("edges", [[0, 1, 1, 40, 75], [0, 64, 70]])
def test_nested_form_equals_a_loop_of_gradients_for_ragged_lengths(dtype, edges):
    a, b, V = operands(1, edges[-1], 48, 70, 2, dtype)
    g = per_sample_gradients(a[0], b[0], list(pairwise(edges)))
    wgrad, dots = inrun_kernels.wgrad_dots(a[0], b[0], V, torch.tensor(edges))
    assert error(wgrad, g.sum(0)) < tolerance(edges[-1])
    assert error(dots, torch.einsum("noi,koi->kn", g, V.double())) < tolerance(edges[-1] + 48 * 70)


@pytest.mark.parametrize("splits", [1, 2, 3, 7])
@pytest.mark.parametrize("ragged", [False, True])
def test_splits_own_whole_samples_and_add_to_what_is_there(splits, ragged):
    from inrun_kernels.jit.wgrad_dots import launch

    a, b, V = operands(1, 35, 16, 40, 2, torch.float32)
    spans = [(0, 3), (3, 20), (20, 21), (21, 30), (30, 35)] if ragged else uniform(5, 7)
    g = per_sample_gradients(a[0], b[0], spans)
    start = torch.randn(40, 16)
    wgrad = start.clone()
    same, dots = launch(a[0], b[0], V, spans, wgrad, splits)
    assert same is wgrad
    assert error(wgrad, g.sum(0) + start.double()) < tolerance(36)
    assert error(dots, torch.einsum("noi,koi->kn", g, V.double())) < tolerance(7 + 640)


def test_equal_calls_give_equal_bits():
    a, b, V = operands(4, 33, 40, 50, 2, torch.float32)
    first, second = inrun_kernels.wgrad_dots(a, b, V), inrun_kernels.wgrad_dots(a, b, V)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_nothing_beyond_the_edge_enters_a_result():
    storage_a, storage_b = torch.full((24, 48), torch.nan), torch.full((24, 32), torch.nan)
    a, b, V = operands(1, 24, 37, 21, 2, torch.float32)
    storage_a[:, :37], storage_b[:, :21] = a[0], b[0]
    views = storage_a[:, :37].view(3, 8, 37), storage_b[:, :21].view(3, 8, 21)
    g = per_sample_gradients(a[0], b[0], uniform(3, 8))
    assert common.readable(views[0].flatten(0, 1)) == 48, "the padding is read"
    wgrad, dots = inrun_kernels.wgrad_dots(*views, V)
    assert error(wgrad, g.sum(0)) < tolerance(24)
    assert error(dots, torch.einsum("noi,koi->kn", g, V.double())) < tolerance(8 + 777)
    tokens = inrun_kernels.outer_dots(*views, V)
    assert error(tokens, torch.einsum("noi,koi->kn", g, V.double())) < tolerance(8 + 777)


@pytest.mark.parametrize("dtype", DTYPES)
def test_contracted_dots_equal_the_formula(dtype):
    a, b, V = operands(3, 47, 70, 139, 2, dtype)
    V *= 1e-7  # below float16's range: each direction is scaled before it is rounded
    tokens = inrun_kernels.outer_dots(*tokens_as_samples(a, b), V).view(2, 3, 47)
    expected = torch.einsum("nto,koi,nti->knt", b.double(), V.double(), a.double())
    allowed = tolerance(139 * 70, rounded=narrow(dtype))
    assert error(tokens, expected) < allowed
    assert error(inrun_kernels.outer_dots(a, b, V), expected.sum(-1)) < allowed


@pytest.mark.parametrize("dtype", DTYPES)
def test_hessian_vector_product_equals_the_formula(dtype):
    (a, b, _), (da, db, _) = operands(3, 150, 40, 70, 1, dtype), operands(3, 150, 40, 70, 1, dtype)
    expected = torch.einsum("nto,nti->oi", b.double(), da.double()) + torch.einsum(
        "nto,nti->oi", db.double(), a.double()
    )
    assert error(inrun_kernels.ghost_hvp(a, b, da, db), expected) < tolerance(900)


@pytest.mark.parametrize("dtype", DTYPES)
def test_pairwise_dots_equal_products_of_gradients(dtype):
    (a, b, _), (av, bv, _) = operands(3, 70, 37, 20, 1, dtype), operands(2, 35, 37, 20, 1, dtype)
    train = per_sample_gradients(a.flatten(0, 1), b.flatten(0, 1), uniform(3, 70))
    validation = per_sample_gradients(av.flatten(0, 1), bv.flatten(0, 1), uniform(2, 35))
    expected = torch.einsum("noi,moi->nm", train, validation)
    assert error(inrun_kernels.pairwise_dots(a, b, av, bv), expected) < 3 * tolerance(70 * 35)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 3])
def test_streamed_sum_and_dots_equal_the_formula(dtype, k):
    g, V = torch.randn(4, 51, 43).to(dtype), torch.randn(k, 51, 43)
    total, dots = sum_dots(g, V)
    assert error(total, g.double().sum(0)) < tolerance(4)
    assert error(dots, torch.einsum("noi,koi->kn", g.double(), V.double())) < tolerance(51 * 43)


@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding_dots_equal_the_formula(dtype):
    ids, b, V = (
        torch.randint(0, 9, (3, 19)),
        torch.randn(3, 19, 130).to(dtype),
        torch.randn(2, 9, 130),
    )
    expected = torch.einsum("nto,knto->knt", b.double(), V[:, ids].double())
    assert error(inrun_kernels.embedding_dots(ids, b, V), expected) < tolerance(130)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("centred", [True, False])
def test_norm_dots_equal_the_formula(dtype, centred):
    x, b = torch.randn(2, 3, 45, 70).to(dtype)
    rstd, V, bias_V = torch.rand(3, 45), *torch.randn(2, 2, 70)
    mean = torch.randn(3, 45) if centred else None
    result = inrun_kernels.norm_dots(x, b, rstd, V, mean, bias_V)
    shifted = x.double() - (mean.double()[..., None] if centred else 0)
    weight, bias = (b.double() * shifted * rstd.double()[..., None]).sum(1), b.double().sum(1)
    assert error(result.wgrad, weight.sum(0)) < tolerance(135)
    assert error(result.bias_grad, bias.sum(0)) < tolerance(135)
    assert error(result.dots, V.double() @ weight.T + bias_V.double() @ bias.T) < tolerance(45 + 70)


@pytest.mark.parametrize("dtype", DTYPES)
def test_head_with_loss_equals_the_formula(dtype, monkeypatch):
    monkeypatch.setattr(chunks, "LOGITS_BYTES", 100 * 10 * dtype.itemsize)
    x, _, V = operands(3, 7, 40, 100, 2, dtype)
    w, targets = torch.randn(100, 40) * 0.2, torch.randint(0, 100, (3, 7))
    targets[1, 2] = -100
    head = inrun_kernels.linear_cross_entropy_dots(x, w, targets, V)
    exact = x.double().requires_grad_(), w.to(dtype).double().requires_grad_()
    dots = torch.zeros(2, 3, dtype=torch.float64)
    gradients = []
    for n in range(3):
        z = torch.nn.functional.linear(exact[0][n], exact[1])
        loss = (
            torch.nn.functional.cross_entropy(z, targets[n], ignore_index=-100, reduction="sum")
            / 20
        )
        gradients.append(torch.autograd.grad(loss, exact))
        dots[:, n] = (gradients[-1][1] * V.double()).sum((1, 2))
    # Logits, softmax gradients and dx are each rounded to dtype; logits of size s carry s times its
    # roundoff.
    allowed = tolerance(100 * 40, rounded=narrow(dtype)) * 4
    assert error(head.dx, sum(g[0] for g in gradients)) < allowed
    assert error(head.wgrad, sum(g[1] for g in gradients)) < allowed
    assert error(head.dots, dots) < allowed
    assert head.token_losses[1, 2] == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_gradient_carries_its_running_maximum_over_blocks(dtype):
    from inrun_kernels.jit.cross_entropy import launch

    z = (torch.randn(4, 9001) + torch.linspace(0, 8, 9001)).to(dtype)
    z[3] = z[3].flip(0)
    labels, factors, losses = (
        torch.tensor([0, 9000, 4096, 17]),
        torch.tensor([1.0, 0.5, 0.0, 2.0]),
        torch.empty(4),
    )
    exact = z.double().requires_grad_()
    expected = torch.nn.functional.cross_entropy(exact, labels, reduction="none")
    (gradient,) = torch.autograd.grad(expected @ factors.double(), exact)
    launch(z, labels, factors, losses)
    assert error(losses, expected.detach()) < tolerance(9001)
    assert error(z, gradient) < tolerance(9001, rounded=narrow(dtype))
    assert (z[2] == 0).all()


def test_ids_and_targets_out_of_range_show_as_nan():
    V = torch.randn(1, 9, 16)
    dots = inrun_kernels.embedding_dots(torch.tensor([[3, 9, -1]]), torch.randn(1, 3, 16), V)
    assert dots.isnan().tolist() == [[[False, True, True]]]
    x, targets = torch.randn(1, 2, 16), torch.tensor([[1, 9]])
    losses = inrun_kernels.linear_cross_entropy_dots(x, V[0], targets, V).token_losses
    assert losses.isnan().tolist() == [[False, True]]


def test_partial_waves_prefer_fewer_splits():
    device = torch.device("cpu")
    assert common.slots(device) == 4
    assert common.splits_for(4, 16, device) == 1, "one full wave"
    assert common.splits_for(1, 16, device) == 4, "four programs for one tile"
    assert common.splits_for(3, 4, device) == 4, "three waves of one sample beat one of four"


def test_float64_is_refused_with_the_way_out():
    a, b, V = operands(1, 2, 3, 4, 1, torch.float64)
    with pytest.raises(TypeError, match='"torch" for float64'):
        inrun_kernels.wgrad_dots(a, b, V)


@pytest.mark.slow
def test_every_shipped_configuration_compiles_within_its_limits():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    table = subprocess.run(
        [sys.executable, "-m", "inrun_kernels.aot"], capture_output=True, text=True, env=environment
    )
    assert table.returncode == 0, table.stdout + table.stderr
    assert "every configuration is within its limits" in table.stdout


def test_the_main_kernels_compile_without_a_spill_for_both_architectures():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "inrun_kernels.aot", "bf16 3072x768 k=1"]
    table = subprocess.run(command, capture_output=True, text=True, env=environment)
    rows = [line for line in table.stdout.splitlines() if "sm_" in line]
    assert table.returncode == 0, table.stdout + table.stderr
    assert len(rows) == 4
    assert all(row.endswith("ok") for row in rows)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_on_a_gpu_equal_the_formula(dtype):
    a, b, V = (x.cuda() for x in operands(4, 100, 256, 384, 2, dtype))
    wgrad, dots = inrun_kernels.wgrad_dots(a, b, V)
    g = torch.einsum("nto,nti->noi", b.double(), a.double())
    assert error(wgrad, g.sum(0)) < tolerance(400) * 4
    assert error(dots, torch.einsum("noi,koi->kn", g, V.double())) < tolerance(100 + 256 * 384) * 4
