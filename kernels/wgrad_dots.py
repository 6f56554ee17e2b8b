"""The fused ghost dot product: a layer's weight gradient and, from the same products, its per-sample dots.

    wgrad = sum_n g_n        dots[k,n] = <g_n, V_k>        g_n = sum_t b_nt a_nt^T

The per-sample gradients that a dot product needs are by-products of the weight gradient: the sum over tokens is cut at
sample ends, each part is dotted with the directions while it is hot (in registers on a GPU, in cache on a CPU), then
added to the total. No second matrix product, no per-sample gradient in memory.

The quantity is that of Wang, Mittal, Song, Jia (ICLR 2025), section 4.2, but aggregated over the validation set first
(V is any stack of weight-shaped directions), which is why no train x validation product appears.

Rounding. Cutting the token sum at sample ends only re-associates a sum of T = sum of lengths products per element, so
against one GEMM over all tokens |difference| <= 2 T u sum_t |b_t| |a_t|^T elementwise, with u = 2^-24 (2^-53 in
float64) and, for half-precision inputs on the CPU, one further rounding of each per-sample part: + u_half sum_n |g_n|.
"""

import torch
from torch import Tensor

from kernels import reference, shapes
from kernels.backend import accumulation_dtype, backend_for
from kernels.contract_dots import contract_packed

# A tile of the weight, its copies in V and in the total are revisited by every sample: together they should stay in a
# core's 2 MB L2. Measured on a 3072x768 float32 layer, 512 tokens a sample: 25.2 ms at 512 rows against 24.2 ms for the
# bare GEMM, 25.9 ms at 256 rows (GEMM too small) and 25.2 ms untiled only because that L3 held everything.
TILE_BYTES = 1536 * 1024


def wgrad_dots(a: Tensor, b: Tensor, V: Tensor, offsets: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Weight gradient of a linear layer and the dot product of each sample's share with each direction.

    a [n,t,i] inputs and b [n,t,o] output gradients; or packed samples of any lengths, a [p,i] and b [p,o] with
    offsets [n+1] (integer, cumulative, on any device). V [k,o,i] directions. Any mixture of floating dtypes.
    Returns wgrad [o,i] and dots [k,n], float32 (float64 if an input is float64), in the units of b times those of V.
    Raises ValueError for shapes that do not fit, TypeError for integer tensors.
    """
    shapes.check_pair("wgrad_dots", a, b, V, offsets)
    backend = backend_for(a, b, V)
    if backend == "reference":
        return reference.wgrad_dots(a, b, V, offsets)
    return _split(a, b, V, offsets)


def outer_dots(a: Tensor, b: Tensor, V: Tensor, offsets: Tensor | None = None) -> Tensor:
    """The dots of `wgrad_dots` without the weight gradient, by the cheaper of two routes.

    Arguments and errors as `wgrad_dots`; returns dots [k,n]. Long samples: each sample's gradient, one GEMM, is dotted
    with all directions. Short samples or wide layers: b^T V a per token, summed over the sample.
    """
    shapes.check_pair("outer_dots", a, b, V, offsets)
    backend = backend_for(a, b, V)
    if backend == "reference":
        return reference.outer_dots(a, b, V, offsets)
    return _contract(a, b, V, offsets)


def _split(a: Tensor, b: Tensor, V: Tensor, offsets: Tensor | None) -> tuple[Tensor, Tensor]:
    """One GEMM per sample and tile of rows into a reused buffer, dotted while hot, added to the total."""
    samples = None if offsets is not None else a.shape[0]
    a, b = shapes.pack(a), shapes.pack(b)
    a, b = (x.to(torch.promote_types(a.dtype, b.dtype)) for x in (a, b))
    spans = shapes.bounds("wgrad_dots", a.shape[0], samples, offsets)
    wide = accumulation_dtype(a, b, V)
    o, i, k = b.shape[1], a.shape[1], V.shape[0]
    rows = max(1, min(o, TILE_BYTES // (i * wide.itemsize)))
    starts = range(0, o, rows)
    wgrad = torch.zeros(o, i, dtype=wide, device=a.device)
    parts = torch.zeros(len(starts), len(spans), k, dtype=wide, device=a.device)
    product = torch.empty(rows, i, dtype=a.dtype, device=a.device)
    hot = product if a.dtype == wide else torch.empty(rows, i, dtype=wide, device=a.device)
    for part, start in zip(parts, starts):
        tile = slice(start, min(start + rows, o))
        total = wgrad[tile]
        direction = V[:, tile].reshape(k, -1).to(wide)
        for dot, (first, last) in zip(part, spans):
            g = product[: total.shape[0]]
            torch.mm(b[first:last, tile].t(), a[first:last], out=g)
            if hot is not product:
                g = hot[: total.shape[0]].copy_(g)
            torch.mv(direction, g.view(-1), out=dot)
            total.add_(g)
    return wgrad, parts.sum(0, dtype=torch.float64).t().to(wide)


def _contract(a: Tensor, b: Tensor, V: Tensor, offsets: Tensor | None) -> Tensor:
    """Per-token dots, summed over each sample."""
    samples = None if offsets is not None else a.shape[0]
    a, b = shapes.pack(a), shapes.pack(b)
    spans = shapes.bounds("outer_dots", a.shape[0], samples, offsets)
    tokens = contract_packed(a, b, V)
    if samples is not None:
        return tokens.view(V.shape[0], samples, -1).sum(-1)
    return torch.stack([tokens[:, first:last].sum(-1) for first, last in spans], dim=1)
