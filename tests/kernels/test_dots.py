"""Dots of all but linear layers, plain routes and formulas, against float64 autograd."""

import importlib

import pytest
import torch

import inrun_kernels
from inrun_kernels.sum_dots import sum_dots
from tests.support.kernel_oracles import (
    DTYPES,
    error,
    operands,
    per_sample_gradients,
    tolerance,
    uniform,
    wide,
)


@pytest.fixture(params=["reference", "torch"])
def backend(request):
    with inrun_kernels.use(request.param):
        yield request.param


@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding_dots_count_repeated_ids(backend, dtype):
    ids = torch.tensor([[0, 3, 3], [8, 0, 3]])
    b, V = torch.randn(2, 3, 5).to(dtype), torch.randn(2, 9, 5, dtype=wide(dtype))
    dots = inrun_kernels.embedding_dots(ids, b, V)
    table = torch.zeros(9, 5, dtype=torch.float64, requires_grad=True)
    for n in range(2):
        y = torch.nn.functional.embedding(ids[n], table)
        g = torch.autograd.grad(y, table, b[n].double())[0]
        expected = (g * V.double()).sum((1, 2))
        assert error(dots[:, n].sum(-1), expected) < tolerance(15, dtype=wide(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("centred", [True, False])
def test_norm_dots_equal_a_loop_of_gradients(backend, dtype, centred):
    x, b = torch.randn(3, 6, 10).to(dtype) + 0.5, torch.randn(3, 6, 10).to(dtype)
    V, bias_V = torch.randn(2, 2, 10, dtype=wide(dtype))
    w, bias = torch.ones(2, 10, dtype=torch.float64, requires_grad=True)
    exact = x.double()
    mean = exact.mean(-1) if centred else None
    centre = exact - mean[..., None] if centred else exact
    rstd = torch.rsqrt(centre.square().mean(-1) + 1e-5)
    narrow_mean = None if mean is None else mean.to(wide(dtype))
    result = inrun_kernels.norm_dots(x, b, rstd.to(wide(dtype)), V, narrow_mean, bias_V)
    expected = torch.zeros(2, 3, dtype=torch.float64)
    total = torch.zeros(2, 10, dtype=torch.float64)
    for n in range(3):
        if centred:
            y = torch.nn.functional.layer_norm(exact[n], (10,), w, bias, 1e-5)
        else:
            y = torch.nn.functional.rms_norm(exact[n], (10,), w, 1e-5) + bias
        g = torch.stack(torch.autograd.grad(y, (w, bias), b[n].double()))
        total += g
        expected[:, n] = (g[0] * V.double()).sum(-1) + (g[1] * bias_V.double()).sum(-1)
    allowed = 2 * tolerance(6 + 10, dtype=wide(dtype))  # the statistics are rounded too
    assert error(result.wgrad, total[0]) < allowed
    assert error(result.bias_grad, total[1]) < allowed
    assert error(result.dots, expected) < allowed


@pytest.mark.parametrize("dtype", DTYPES)
def test_hessian_vector_product_is_the_tangent_of_the_weight_gradient(dtype):
    a, b, _ = operands(2, 7, 5, 9, 1, dtype)
    da, db, _ = operands(2, 7, 5, 9, 1, dtype)
    hvp = inrun_kernels.ghost_hvp(a, b, da, db)
    gradients = [
        per_sample_gradients(
            (a.double() + h * da.double()).flatten(0, 1),
            (b.double() + h * db.double()).flatten(0, 1),
            [(0, 14)],
        )
        for h in (1, -1)
    ]
    expected = (gradients[0] - gradients[1])[
        0
    ] / 2  # the gradient is bilinear: its central difference is exact
    assert error(hvp, expected) < tolerance(28, dtype=wide(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("t", "s", "m"), [(130, 3, 5), (3, 1030, 2)])
def test_pairwise_dots_equal_products_of_materialised_gradients(backend, dtype, t, s, m):
    a, b, _ = operands(2, t, 5, 6, 1, dtype)
    av, bv, _ = operands(m, s, 5, 6, 1, dtype)
    train = per_sample_gradients(a.flatten(0, 1), b.flatten(0, 1), uniform(2, t))
    validation = per_sample_gradients(av.flatten(0, 1), bv.flatten(0, 1), uniform(m, s))
    expected = torch.einsum("noi,moi->nm", train, validation)
    assert error(inrun_kernels.pairwise_dots(a, b, av, bv), expected) < 3 * tolerance(
        t * s, dtype=wide(dtype)
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_sum_dots_reads_gradients_of_any_weight_shape(dtype, monkeypatch):
    monkeypatch.setattr(importlib.import_module("inrun_kernels.sum_dots"), "CHUNK", 60)
    g, V = torch.randn(4, 3, 5, 7).to(dtype), torch.randn(2, 3, 5, 7, dtype=wide(dtype))
    total, dots = sum_dots(g, V)
    allowed = tolerance(105, dtype=wide(dtype))
    assert error(total, g.double().sum(0)) < allowed
    assert error(dots, torch.einsum("nxyz,kxyz->kn", g.double(), V.double())) < allowed


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda a, b, V: inrun_kernels.wgrad_dots(a, b[:, :2], V),
            ValueError,
            "equal leading axes",
        ),
        (lambda a, b, V: inrun_kernels.wgrad_dots(a, b, V[0]), ValueError, r"V.unsqueeze\(0\)"),
        (lambda a, b, V: inrun_kernels.wgrad_dots(a, b, V.mT), ValueError, r"\[k,o,i\]"),
        (lambda a, b, V: inrun_kernels.wgrad_dots(a, b.int(), V), TypeError, "floating-point"),
        (
            lambda a, b, V: inrun_kernels.wgrad_dots(a[0], b[0], V, torch.tensor([0, 2])),
            ValueError,
            "rise from 0",
        ),
        (
            lambda a, b, V: inrun_kernels.wgrad_dots(a[0], b[0], V, torch.tensor([0, 3, 1, 4])),
            ValueError,
            "rise from 0",
        ),
        (
            lambda a, b, V: inrun_kernels.outer_dots(a[0], b[0], V, torch.tensor([0.0, 4.0])),
            ValueError,
            "int32 or int64",
        ),
        (lambda a, b, V: inrun_kernels.embedding_dots(a, b, V), TypeError, "ids must be"),
        (
            lambda a, b, V: inrun_kernels.embedding_dots(torch.zeros(2, 3).long(), b, V),
            ValueError,
            "leading axes",
        ),
        (lambda a, b, V: inrun_kernels.ghost_hvp(a, b, a, a), ValueError, "equal leading axes"),
        (lambda a, b, V: inrun_kernels.pairwise_dots(a, b, b, a), ValueError, "one layer"),
        (
            lambda a, b, V: inrun_kernels.norm_dots(a, a, a[..., 0], V[:, 0], a),
            ValueError,
            "RMSNorm",
        ),
    ],
)
def test_shapes_that_do_not_fit_raise_and_say_how_they_should_be(call, kind, message):
    a, b, V = operands(2, 4, 3, 5, 1, torch.float32)
    with pytest.raises(kind, match=message):
        call(a, b, V)


def test_an_id_outside_the_table_raises():
    with pytest.raises(IndexError), inrun_kernels.use("torch"):
        inrun_kernels.embedding_dots(
            torch.tensor([[7]]), torch.randn(1, 1, 3), torch.randn(1, 7, 3)
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_sums_and_dots_of_kept_gradients_are_their_formulas(monkeypatch, dtype):
    monkeypatch.setattr(importlib.import_module("inrun_kernels.sum_dots"), "CHUNK", 40)
    g, V = (
        torch.randn(3, 5, 7, dtype=torch.float64).to(dtype),
        torch.randn(2, 5, 7, dtype=torch.float64),
    )
    V = V if dtype == torch.float64 else V.float()
    exact = g.double()
    accurate = (
        dict(rtol=1e-12, atol=1e-12) if dtype == torch.float64 else dict(rtol=1e-5, atol=1e-5)
    )
    torch.testing.assert_close(inrun_kernels.sample_sum(g).double(), exact.sum(0), **accurate)
    expected = torch.einsum("nij,kij->kn", exact, V.double())
    torch.testing.assert_close(inrun_kernels.sample_dots(g, V).double(), expected, **accurate)
