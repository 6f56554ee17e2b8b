"""The fused ghost dot product: a weight gradient and per-sample dots from one product.

    wgrad = sum_n g_n        dots[k,n] = <g_n, V_k>        g_n = sum_t b_nt a_nt^T

The per-sample gradients that a dot product needs are by-products of the weight gradient: the sum
over tokens is cut at sample ends, each part is dotted with the directions while it is hot (in
registers on a GPU, in cache on a CPU), then added to the total. No second matrix product, no
per-sample gradient in memory.

The quantity is that of Wang, Mittal, Song, Jia (ICLR 2025), section 4.2, with the validation
gradients summed first (V is any stack of weight-shaped directions), which is why no train x
validation product appears.

Rounding. Cutting the token sum at sample ends only re-associates it. Against one product over all T
tokens of the batch, elementwise,

    |difference| <= 2 gamma_T sum_t |b_t| |a_t|^T
    gamma_T = T u / (1 - T u),  u = 2^-24 (2^-53 in float64)

and for half-precision inputs on the CPU, whose products are rounded once per sample, another u_half
sum_n |g_n|.
"""

import torch
from torch import Tensor

from inrun_kernels import cost, memory, reference, shapes
from inrun_kernels.backend import accumulation_dtype, backend_for, operator
from inrun_kernels.contract_dots import contract_packed
from inrun_kernels.sum_dots import materialise

# A tile of the weight's rows, with its copies in V and in the total, is revisited by every sample:
# it should stay in the last-level cache, and be large enough that the calls between two products do
# not count. Two cores, 2304x768 float32, 4 samples of 512 tokens, ms (the bare product takes 37.7):
# 48.8 at 1.5 MB, 41.5 at 6, 39.7 at 16.
TILE_BYTES = 16 << 20


def wgrad_dots(
    a: Tensor, b: Tensor, V: Tensor, offsets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Weight gradient of a linear layer [o,i], and each sample's dots with V [k,n].

    a [n,t,i] inputs and b [n,t,o] output gradients; or packed samples of any lengths, a [p,i] and b
    [p,o] with offsets [n+1] (integer, cumulative). V [k,o,i] directions. Any mixture of floating
    dtypes. Results in float32 (float64 if an input is float64), dots in the units of b times those
    of V. Not differentiable itself. Raises ValueError for shapes that do not fit, TypeError for
    integer tensors.
    """
    shapes.check_pair("wgrad_dots", a, b, V, offsets)
    return _wgrad_dots(a, b, V, offsets)


def outer_dots(a: Tensor, b: Tensor, V: Tensor, offsets: Tensor | None = None) -> Tensor:
    """The dots of `wgrad_dots` without the weight gradient, by the cheaper of two routes.

    Arguments and errors as `wgrad_dots`; returns dots [k,n]. Several directions and long samples:
    each sample's gradient, one product, is dotted with all directions. Otherwise b^T V a per token,
    summed over the sample.
    """
    shapes.check_pair("outer_dots", a, b, V, offsets)
    return _outer_dots(a, b, V, offsets)


@operator("wgrad_dots")
def _wgrad_dots(a: Tensor, b: Tensor, V: Tensor, offsets: Tensor | None) -> tuple[Tensor, Tensor]:
    backend = backend_for(a, b, V)
    if backend == "reference":
        return reference.wgrad_dots(a, b, V, offsets)
    _, spans, a, b = _packed(a, b, offsets)
    return packed_wgrad_dots(a, b, V, spans, None, backend)


@_wgrad_dots.register_fake
def _(a, b, V, offsets):
    wide = accumulation_dtype(a, b, V)
    samples = a.shape[0] if offsets is None else offsets.shape[0] - 1
    return V.new_empty(V.shape[1:], dtype=wide), V.new_empty((V.shape[0], samples), dtype=wide)


@operator("outer_dots")
def _outer_dots(a: Tensor, b: Tensor, V: Tensor, offsets: Tensor | None) -> Tensor:
    backend = backend_for(a, b, V)
    if backend == "reference":
        return reference.outer_dots(a, b, V, offsets)
    samples, spans, a, b = _packed(a, b, offsets)
    route = cost.choose("outer_dots", _work(samples, a, b, V), backend, a.device)
    if route == "split":
        return accumulate(a, b, V, spans, None)
    if route == "fused":
        from inrun_kernels.jit.contract_dots import launch

        return sum_samples(launch(a, b, V), spans)
    return sum_samples(contract_packed(a, b, V), spans)


@_outer_dots.register_fake
def _(a, b, V, offsets):
    samples = a.shape[0] if offsets is None else offsets.shape[0] - 1
    return V.new_empty((V.shape[0], samples), dtype=accumulation_dtype(a, b, V))


def packed_wgrad_dots(
    a: Tensor,
    b: Tensor,
    V: Tensor,
    spans: list[tuple[int, int]],
    wgrad: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """`wgrad_dots` of packed a [p,i], b [p,o] of one dtype, by the cost model's route.

    The weight gradient is added to `wgrad` in place where one is given, so that a batch may come in
    chunks of tokens. Returns the weight gradient and dots [k, spans].
    """
    route = cost.choose("wgrad_dots", _work(len(spans), a, b, V), backend, a.device)
    if route == "fused":
        from inrun_kernels.jit.wgrad_dots import launch

        return launch(a, b, V, spans, wgrad)
    fresh = wgrad is None
    if wgrad is None:
        wgrad = memory.empty((b.shape[1], a.shape[1]), accumulation_dtype(a, b, V), a.device)
    if fresh and (route != "split" or not spans):
        wgrad.zero_()
    if route == "bmm":
        return wgrad, materialise(a, b, V, spans, wgrad)
    if route == "split":
        return wgrad, accumulate(a, b, V, spans, wgrad, fresh)
    wgrad.add_(torch.mm(b.t(), a))
    return wgrad, sum_samples(contract_packed(a, b, V), spans)


def _packed(
    a: Tensor, b: Tensor, offsets: Tensor | None
) -> tuple[int, list[tuple[int, int]], Tensor, Tensor]:
    """Number of samples, their spans of packed tokens, and both operands packed, in one dtype."""
    samples = a.shape[0] if offsets is None else offsets.shape[0] - 1
    dtype = torch.promote_types(a.dtype, b.dtype)
    a, b = shapes.pack(a).to(dtype), shapes.pack(b).to(dtype)
    return samples, shapes.bounds("wgrad_dots", a.shape[0], samples, offsets), a, b


def _work(samples: int, a: Tensor, b: Tensor, V: Tensor) -> cost.Work:
    tokens = max(1, round(a.shape[0] / max(1, samples)))
    return cost.Work(samples, tokens, a.shape[1], b.shape[1], V.shape[0], a.dtype)


def accumulate(
    a: Tensor,
    b: Tensor,
    V: Tensor,
    spans: list[tuple[int, int]],
    wgrad: Tensor | None,
    fresh: bool = False,
) -> Tensor:
    """Dots [k, spans] of packed a [p,i], b [p,o] of one dtype, product by product.

    The weight gradient is added to `wgrad` where given, or written to it if it is `fresh`. Products
    go to a reused buffer, are dotted while hot, and are added to the total. The tile of rows is the
    outer loop: V's tile and the total's stay in cache for all spans. On a CPU several directions
    are dotted with all spans of a tile together, so that V comes from memory once.
    """
    wide = accumulation_dtype(a, b, V)
    o, i, k, n = b.shape[1], a.shape[1], V.shape[0], len(spans)
    together = n if k > 1 and not a.is_cuda else 1
    rows = o if a.is_cuda else max(1, min(o, TILE_BYTES // (together * i * wide.itemsize)))
    starts = range(0, o, rows)
    parts = torch.empty(len(starts), k, n, dtype=wide, device=a.device)
    products = memory.empty((together * rows * i,), a.dtype, a.device)
    widened = products if a.dtype == wide else memory.empty(products.shape, wide, a.device)
    for part, start in zip(parts, starts):
        tile = slice(start, min(start + rows, o))
        size = (tile.stop - start) * i
        direction = V[:, tile].reshape(k, -1).to(wide)
        total = None if wgrad is None else wgrad[tile]
        for s, (first, last) in enumerate(spans):
            place = slice(s % together * size, (s % together + 1) * size)
            buffers = products[place].view(-1, i), widened[place].view(-1, i)
            operands = b[first:last, tile].t(), a[first:last]
            g = _sample_gradient(*operands, *buffers, total, fresh and s == 0, together == 1)
            if k == 1:  # a matrix of one row times a vector takes 1.7 times as long
                torch.dot(direction[0], g.view(-1), out=part[0, s])
            elif together == 1:
                part[:, s] = torch.mv(direction, g.view(-1))
        if together > 1:
            torch.mm(direction, widened[: n * size].view(n, size).t(), out=part)
    return parts.sum(0, dtype=torch.float64).to(wide)


def _sample_gradient(
    left: Tensor,
    right: Tensor,
    product: Tensor,
    widened: Tensor,
    total: Tensor | None,
    fresh: bool,
    alone: bool,
) -> Tensor:
    """left right [rows,i] of one sample in the dtype of sums, added to `total` if given.

    `product` and `widened` are its places in the operands' dtype and in the wide one. If `fresh`,
    it is the total so far; if it is also `alone` (no other sample's product has to stay beside it),
    it is formed in the total's place.
    """
    if total is not None and fresh and alone:
        if total.dtype == left.dtype:
            return torch.mm(left, right, out=total)
        return total.copy_(torch.mm(left, right, out=product))
    g = torch.mm(left, right, out=product)
    if product.dtype != widened.dtype:
        g = widened.copy_(g)
    if total is not None:
        total.copy_(g) if fresh else total.add_(g)
    return g


def sum_samples(tokens: Tensor, spans: list[tuple[int, int]]) -> Tensor:
    """Per-token dots [k,p] summed over each span of tokens: [k, spans]."""
    lengths = {last - first for first, last in spans}
    if len(lengths) == 1:
        return tokens.reshape(tokens.shape[0], len(spans), lengths.pop()).sum(-1)
    return torch.stack([tokens[:, first:last].sum(-1) for first, last in spans], dim=1)
