"""One streaming pass over per-sample gradients in memory: their sum and their dots.

`sample_sum` and `sample_dots` take one of the two. `materialise` is the library route of
`wgrad_dots`: a batched product writes per-sample gradients, `sum_dots` reads them once. On a GPU it
rivals the fused kernel (a vendor's batched product is fast); on a CPU it never pays.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from inrun_kernels import memory
from inrun_kernels.backend import accumulation_dtype, backend_for

# Memory that per-sample gradients of the library route may take at once; larger weights go through
# in tiles of rows.
SCRATCH_BYTES = 256 * 1024 * 1024
# Elements of all samples' gradients in a pass of the plain route: 4 MB of float32 stay in the
# last-level cache.
CHUNK = 1 << 20


def sum_dots(g: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """sum_n g_n [...] and <g_n, V_k> [k,n] of per-sample gradients g [n,...] and V [k,...].

    float32 results (float64 if an input is float64).
    """
    flat, directions = g.reshape(g.shape[0], -1), V.reshape(V.shape[0], -1)
    if backend_for(g, V) == "triton":
        from inrun_kernels.jit.sum_dots import launch

        total, dots = launch(flat, directions)
    else:
        total, dots = _stream(flat, directions)
    return total.view(g.shape[1:]), dots


def _stream(g: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """g [n,w], V [k,w]: each chunk is read once from memory, then summed and dotted in cache."""
    wide = accumulation_dtype(g, V)
    total = memory.empty(g.shape[1:], wide, g.device)
    dots = torch.zeros(V.shape[0], g.shape[0], dtype=torch.float64, device=g.device)
    for chunk, part in _chunks(g, wide):
        torch.sum(part, 0, out=total[chunk])
        dots += torch.mm(V[:, chunk].to(wide), part.t())
    return total, dots.to(wide)


def _chunks(g: Tensor, wide: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Columns of g [n,w] in the accumulation dtype, a piece that stays in cache at a time.

    The piece is overwritten by the next.
    """
    columns = max(1, CHUNK // max(1, g.shape[0]))
    buffer = (
        None
        if g.dtype == wide
        else torch.empty(g.shape[0] * min(columns, g.shape[1]), dtype=wide, device=g.device)
    )
    for start in range(0, g.shape[1], columns):
        part = g[:, start : start + columns]
        yield (
            slice(start, start + columns),
            part if buffer is None else buffer[: part.numel()].view(part.shape).copy_(part),
        )


def sample_sum(g: Tensor) -> Tensor:
    """sum_n g_n of per-sample gradients g [n, ...], in float32 (float64 for float64).

    torch's own sum of a bfloat16 tensor over its first axis takes eight times as long.
    """
    wide = accumulation_dtype(g)
    flat = g.reshape(g.shape[0], -1)
    total = memory.empty(flat.shape[1:], wide, g.device)
    for chunk, part in _chunks(flat, wide):
        torch.sum(part, 0, out=total[chunk])
    return total.view(g.shape[1:])


def sample_dots(g: Tensor, V: Tensor) -> Tensor:
    """<g_n, V_k> [k,n] of per-sample gradients g [n, ...] and V [k, ...].

    In float32 (float64 if one is).
    """
    wide = accumulation_dtype(g, V)
    flat, directions = g.reshape(g.shape[0], -1), V.reshape(V.shape[0], -1)
    if g.dtype == wide:
        return directions.to(wide) @ flat.t()
    dots = torch.zeros(V.shape[0], g.shape[0], dtype=torch.float64, device=g.device)
    for chunk, part in _chunks(flat, wide):
        dots += torch.mm(directions[:, chunk].to(wide), part.t())
    return dots.to(wide)


def materialise(
    a: Tensor, b: Tensor, V: Tensor, spans: list[tuple[int, int]], wgrad: Tensor
) -> Tensor:
    """Dots [k, spans] by products into per-sample gradients and `sum_dots`.

    The product is a batched one where lengths are equal. a [p,i], b [p,o] packed, of one dtype; the
    weight gradient is added to `wgrad`. Tiles of rows keep the scratch under SCRATCH_BYTES.
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
            g = torch.stack(
                [torch.mm(b[first:last, tile].t(), a[first:last]) for first, last in spans]
            )
        total, part = sum_dots(g, V[:, tile])
        wgrad[tile] += total
        dots += part
    return dots.to(wgrad.dtype)
