"""The plain routes of every op, and their formulas, against float64 autograd one sample at a
time.
"""

import importlib
from itertools import pairwise

import pytest
import torch

import inrun_kernels
from inrun_kernels import cost
from tests.support.kernel_oracles import (
    UNIT_ROUNDOFF,
    error,
    operands,
    per_sample_gradients,
    tolerance,
    uniform,
)

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
RAGGED = [0, 5, 5, 6, 23, 40]


def narrow(dtype):
    """The dtype products are rounded to on the way, where it is not the accumulation dtype."""
    return dtype if dtype in (torch.float16, torch.bfloat16) else None


def wide(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


@pytest.fixture(params=["reference", "torch"])
def backend(request):
    with inrun_kernels.use(request.param):
        yield request.param


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("route", ["split", "contract"])
def test_weight_gradient_and_dots_equal_a_loop_of_gradients(dtype, route):
    n, t, i, o, k = 3, 8, 13, 29, 2
    a, b, V = operands(n, t, i, o, k, dtype)
    g = per_sample_gradients(a.flatten(0, 1), b.flatten(0, 1), uniform(n, t))
    with inrun_kernels.use("torch"), cost.prefer(wgrad_dots=route, outer_dots=route):
        wgrad, dots = inrun_kernels.wgrad_dots(a, b, V)
        only = inrun_kernels.outer_dots(a, b, V)
    expected = torch.einsum("noi,koi->kn", g, V.double())
    assert wgrad.dtype == dots.dtype == only.dtype == wide(dtype)
    allowed = tolerance(t + o * i, dtype=wide(dtype), rounded=narrow(dtype))
    assert error(wgrad, g.sum(0)) < allowed
    assert error(dots, expected) < allowed
    assert error(only, expected) < allowed


@pytest.mark.parametrize("route", ["split", "contract"])
def test_ragged_samples_and_an_empty_one_equal_a_loop_of_gradients(route):
    a, b, V = operands(1, RAGGED[-1], 7, 11, 2, torch.float32)
    a, b = a[0], b[0]
    spans = list(pairwise(RAGGED))
    g = per_sample_gradients(a, b, spans)
    expected = torch.einsum("noi,koi->kn", g, V.double())
    offsets = torch.tensor(RAGGED)
    with inrun_kernels.use("torch"), cost.prefer(wgrad_dots=route, outer_dots=route):
        wgrad, dots = inrun_kernels.wgrad_dots(a, b, V, offsets)
        only = inrun_kernels.outer_dots(a, b, V, offsets.int())
    allowed = tolerance(40 + 77)
    assert error(wgrad, g.sum(0)) < allowed
    assert error(dots, expected) < allowed
    assert error(only, expected) < allowed
    assert (dots[:, 1] == 0).all(), "an empty sample has no gradient"


def test_the_formulas_equal_a_loop_of_gradients():
    a, b, V = operands(3, 5, 7, 11, 2, torch.float64)
    g = per_sample_gradients(a.flatten(0, 1), b.flatten(0, 1), uniform(3, 5))
    with inrun_kernels.use("reference"):
        wgrad, dots = inrun_kernels.wgrad_dots(a, b, V)
        assert error(inrun_kernels.outer_dots(a, b, V), dots) < 1e-15
        assert error(inrun_kernels.contract_dots(a, b, V).sum(-1), dots) < 1e-14
        assert error(inrun_kernels.sum_dots(g, V)[0], wgrad) < 1e-15
        assert (
            error(
                inrun_kernels.pairwise_dots(a, b, a[:2], b[:2]),
                torch.einsum("noi,moi->nm", g, g[:2]),
            )
            < 1e-14
        )
    assert error(wgrad, g.sum(0)) < 1e-15
    assert error(dots, torch.einsum("noi,koi->kn", g, V)) < 1e-14


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("i", "o"), [(31, 12), (12, 31)])
def test_token_dots_add_up_to_sample_dots_from_either_side_of_the_layer(dtype, i, o):
    a, b, V = operands(2, 300, i, o, 2, dtype)
    with inrun_kernels.use("torch"):
        tokens = inrun_kernels.contract_dots(a, b, V)
    expected = torch.einsum("nto,koi,nti->knt", b.double(), V.double(), a.double())
    assert tokens.shape == (2, 2, 300)
    assert error(tokens, expected) < tolerance(i * o, dtype=wide(dtype))


def test_a_layer_larger_than_one_tile_gives_the_same_numbers(monkeypatch):
    a, b, V = operands(2, 6, 9, 50, 3, torch.float64)
    expected = inrun_kernels.wgrad_dots(a, b, V)
    monkeypatch.setattr(
        importlib.import_module("inrun_kernels.wgrad_dots"), "TILE_BYTES", 9 * 8 * 7
    )
    tiled = inrun_kernels.wgrad_dots(a, b, V)
    assert error(tiled[0], expected[0]) < 1e-14
    assert error(tiled[1], expected[1]) < 1e-14


def test_splitting_by_sample_stays_within_the_stated_rounding_of_one_product():
    n, t = 6, 40
    a, b, V = operands(n, t, 33, 57, 1, torch.float32)
    with inrun_kernels.use("torch"), cost.prefer(wgrad_dots="split"):
        wgrad, _ = inrun_kernels.wgrad_dots(a, b, V)
    flat_a, flat_b = a.flatten(0, 1), b.flatten(0, 1)
    plain = flat_b.t() @ flat_a
    steps = n * t * UNIT_ROUNDOFF[torch.float32]
    bound = 2 * steps / (1 - steps) * (flat_b.abs().double().t() @ flat_a.abs().double())
    assert not torch.equal(wgrad, plain), (
        "the orders of summation differ: equality would mean that nothing was split"
    )
    assert ((wgrad.double() - plain.double()).abs() <= bound).all()


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
def test_sum_dots_reads_gradients_of_any_weight_shape(backend, dtype, monkeypatch):
    monkeypatch.setattr(importlib.import_module("inrun_kernels.sum_dots"), "CHUNK", 60)
    g, V = torch.randn(4, 3, 5, 7).to(dtype), torch.randn(2, 3, 5, 7, dtype=wide(dtype))
    total, dots = inrun_kernels.sum_dots(g, V)
    allowed = tolerance(105, dtype=wide(dtype))
    assert error(total, g.double().sum(0)) < allowed
    assert error(dots, torch.einsum("nxyz,kxyz->kn", g.double(), V.double())) < allowed


def test_the_library_route_equals_the_split_one_for_equal_and_ragged_lengths(monkeypatch):
    module = importlib.import_module("inrun_kernels.sum_dots")
    monkeypatch.setattr(module, "SCRATCH_BYTES", 4 * 9 * 8 * 5)
    a, b, V = operands(4, 6, 9, 23, 2, torch.float64)
    a, b = a.flatten(0, 1), b.flatten(0, 1)
    for spans in (uniform(4, 6), [(0, 1), (1, 9), (9, 9), (9, 24)]):
        g = per_sample_gradients(a, b, spans)
        wgrad = torch.ones(23, 9, dtype=torch.float64)
        dots = module.materialise(a, b, V, spans, wgrad)
        assert error(wgrad, g.sum(0) + 1) < 1e-14, "added to what was there"
        assert error(dots, torch.einsum("noi,koi->kn", g, V)) < 1e-14


def test_strided_views_give_the_numbers_of_their_copies():
    a, b, V = operands(3, 8, 10, 12, 1, torch.float64)
    wgrad, dots = inrun_kernels.wgrad_dots(
        a[:, ::2, ::2], b.transpose(1, 2).contiguous().transpose(1, 2)[:, ::2], V[..., ::2]
    )
    g = per_sample_gradients(a[:, ::2, ::2].flatten(0, 1), b[:, ::2].flatten(0, 1), uniform(3, 4))
    assert error(wgrad, g.sum(0)) < 1e-14
    assert error(dots, torch.einsum("noi,koi->kn", g, V[..., ::2])) < 1e-14


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
        (
            lambda a, b, V: inrun_kernels.contract_dots(a, b[:1], V),
            ValueError,
            "equal leading axes",
        ),
        (lambda a, b, V: inrun_kernels.embedding_dots(a, b, V), TypeError, "ids must be"),
        (
            lambda a, b, V: inrun_kernels.embedding_dots(torch.zeros(2, 3).long(), b, V),
            ValueError,
            "leading axes",
        ),
        (lambda a, b, V: inrun_kernels.ghost_hvp(a, b, a, a), ValueError, "equal leading axes"),
        (lambda a, b, V: inrun_kernels.pairwise_dots(a, b, b, a), ValueError, "one layer"),
        (lambda a, b, V: inrun_kernels.sum_dots(V[:, 0], V), ValueError, "weight"),
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
