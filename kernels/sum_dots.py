"""One streaming pass over materialised per-sample gradients: their sum and their dots.

The second half of the library route of `wgrad_dots`: a batched product writes per-sample gradients, this reads them
once. On a GPU it rivals the fused kernel (a vendor's batched product is fast); on a CPU it never pays.
"""

import torch
from torch import Tensor

from kernels import reference, shapes
from kernels.backend import accumulation_dtype, backend_for, operator

# Memory that per-sample gradients of the library route may take at once; larger weights go through in tiles of rows.
SCRATCH_BYTES = 256 * 1024 * 1024
# Elements of a gradient per pass of the plain route: 1 MB of float32 stays in a core's L2 for all samples and directions.
CHUNK = 256 * 1024


def sum_dots(g: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over samples of per-sample gradients g [n,...] and their dots with V [k,...]: ([...], [k,n]).

    float32 results (float64 if an input is float64). Raises ValueError for shapes that do not fit, TypeError for
    integer tensors.
    """
    if g.ndim < 2:
        raise ValueError(f"sum_dots: g {list(g.shape)} must be per-sample gradients [n, ...weight]")
    shapes.check_directions("sum_dots", V, tuple(g.shape[1:]), "[k, ...weight]")
    shapes.check_floating("sum_dots", g, V)
    return _sum_dots(g, V)


@operator("sum_dots")
def _sum_dots(g: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    backend = backend_for(g, V)
    if backend == "reference":
        return reference.sum_dots(g, V)
    flat, directions = g.reshape(g.shape[0], -1), V.reshape(V.shape[0], -1)
    if backend == "triton":
        from kernels.jit.sum_dots import launch

        total, dots = launch(flat, directions)
    else:
        total, dots = _stream(flat, directions)
    return total.view(g.shape[1:]), dots


@_sum_dots.register_fake
def _(g, V):
    wide = accumulation_dtype(g, V)
    return V.new_empty(g.shape[1:], dtype=wide), V.new_empty((V.shape[0], g.shape[0]), dtype=wide)


def _stream(g: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """g [n,w], V [k,w] in chunks of columns: each chunk is read once from memory, then summed and dotted in cache."""
    wide = accumulation_dtype(g, V)
    total = torch.empty(g.shape[1], dtype=wide, device=g.device)
    dots = torch.zeros(V.shape[0], g.shape[0], dtype=torch.float64, device=g.device)
    columns = max(1, CHUNK // max(1, g.shape[0]))
    for start in range(0, g.shape[1], columns):
        chunk = slice(start, start + columns)
        part = g[:, chunk].to(wide)
        torch.sum(part, 0, out=total[chunk])
        dots += torch.mm(V[:, chunk].to(wide), part.t())
    return total, dots.to(wide)


def materialise(a: Tensor, b: Tensor, V: Tensor, spans: list[tuple[int, int]], wgrad: Tensor) -> Tensor:
    """`wgrad_dots` by products into per-sample gradients (a batched one where lengths are equal) and `sum_dots`.

    a [p,i], b [p,o] packed, of one dtype; the weight gradient is added to `wgrad`, dots [k, spans] are returned. Tiles
    of rows keep the scratch under SCRATCH_BYTES.
    """
    n, o, i = len(spans), b.shape[1], a.shape[1]
    dots = torch.zeros(V.shape[0], n, dtype=torch.float64, device=a.device)
    rows = max(1, min(o, SCRATCH_BYTES // max(1, n * i * a.itemsize)))
    uniform = len({last - first for first, last in spans}) == 1
    for start in range(0, o, rows):
        tile = slice(start, min(start + rows, o))
        if uniform:
            g = torch.bmm(b.view(n, -1, o)[:, :, tile].mT, a.view(n, -1, i))
        else:
            g = torch.stack([torch.mm(b[first:last, tile].t(), a[first:last]) for first, last in spans])
        total, part = _sum_dots(g, V[:, tile])
        wgrad[tile] += total
        dots += part
    return dots.to(wgrad.dtype)
