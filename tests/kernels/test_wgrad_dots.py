"""A linear layer's dots by every plain route, against a loop of gradients."""

import importlib
from itertools import pairwise

import pytest
import torch

import inrun_kernels
from inrun_kernels import cost
from tests.support.kernel_oracles import (
    DTYPES,
    UNIT_ROUNDOFF,
    error,
    narrow,
    operands,
    per_sample_gradients,
    tokens_as_samples,
    tolerance,
    uniform,
    wide,
)

RAGGED = [0, 5, 5, 6, 23, 40]


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
        tokens = inrun_kernels.outer_dots(*tokens_as_samples(a, b), V)
        assert error(tokens.view(2, 3, 5).sum(-1), dots) < 1e-14
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
    with inrun_kernels.use("torch"), cost.prefer(outer_dots="contract"):
        tokens = inrun_kernels.outer_dots(*tokens_as_samples(a, b), V).view(2, 2, 300)
    expected = torch.einsum("nto,koi,nti->knt", b.double(), V.double(), a.double())
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
