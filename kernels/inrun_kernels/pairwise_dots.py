"""The paper's ghost dot product: all train x validation dots from token Grams.

    <g_n, g_m> = sum_ts (a_nt . av_ms) (b_nt . bv_ms)

Wang, Mittal, Song, Jia (ICLR 2025), section 4.2. The Grams [t,s] are formed in tiles and never held
whole. Use it for the full matrix at short lengths; for validation gradients that are summed anyway
`wgrad_dots` needs no second product.
"""

import torch
from torch import Tensor

from inrun_kernels import reference, shapes
from inrun_kernels.backend import accumulation_dtype, backend_for, operator

# Train and validation tokens of one tile of a Gram on a CPU: two tiles of float32 stay in a core's
# 2 MB L2.
TILE_TRAIN, TILE_VALIDATION = 128, 1024


def pairwise_dots(a: Tensor, b: Tensor, av: Tensor, bv: Tensor) -> Tensor:
    """Dot products of every train sample's gradient with every validation sample's.

    a [n,t,i], b [n,t,o] of the train samples, av [m,s,i], bv [m,s,o] of the validation samples ->
    [n,m], float32 (float64 if an input is float64). Half-precision inputs are widened: rounding the
    Grams costs 7e-3 of a median dot. Raises ValueError for shapes that do not fit, TypeError for
    integer tensors.
    """
    for name, x, y in (("a, b", a, b), ("av, bv", av, bv)):
        if x.ndim != 3 or y.ndim != 3 or x.shape[:2] != y.shape[:2]:
            raise ValueError(
                f"pairwise_dots: {name} {list(x.shape)}, {list(y.shape)} must be [n,t,i] and "
                "[n,t,o]"
            )
    if a.shape[2] != av.shape[2] or b.shape[2] != bv.shape[2]:
        raise ValueError(
            f"pairwise_dots: train widths {a.shape[2]}, {b.shape[2]} differ from validation widths "
            f"{av.shape[2]}, {bv.shape[2]}: both must come from one layer"
        )
    shapes.check_floating("pairwise_dots", a, b, av, bv)
    return _pairwise_dots(a, b, av, bv)


@operator("pairwise_dots")
def _pairwise_dots(a: Tensor, b: Tensor, av: Tensor, bv: Tensor) -> Tensor:
    backend = backend_for(a, b, av, bv)
    if backend == "reference":
        return reference.pairwise_dots(a, b, av, bv)
    if backend == "triton":
        from inrun_kernels.jit.pairwise_dots import launch

        return launch(a, b, av, bv)
    return _tiles(a, b, av, bv)


@_pairwise_dots.register_fake
def _(a, b, av, bv):
    return a.new_empty((a.shape[0], av.shape[0]), dtype=accumulation_dtype(a, b, av, bv))


def _tiles(a: Tensor, b: Tensor, av: Tensor, bv: Tensor) -> Tensor:
    """Tile by tile: a few train tokens by a group of validation samples, or a piece of one."""
    wide = accumulation_dtype(a, b, av, bv)
    a, b, av, bv = (x.to(wide) for x in (a, b, av, bv))
    n, t, m, s = a.shape[0], a.shape[1], av.shape[0], av.shape[1]
    piece = max(1, min(s, TILE_VALIDATION))
    group = max(1, TILE_VALIDATION // piece)
    dots = torch.zeros(n, m, dtype=torch.float64, device=a.device)
    for g in range(0, m, group):
        for start in range(0, s, piece):
            block = slice(g, g + group), slice(start, start + piece)
            inputs, gradients = av[block].flatten(0, 1).t(), bv[block].flatten(0, 1).t()
            for sample in range(n):
                for first in range(0, t, TILE_TRAIN):
                    tokens = sample, slice(first, first + TILE_TRAIN)
                    gram = torch.mm(a[tokens], inputs).mul_(torch.mm(b[tokens], gradients))
                    dots[sample, g : g + group] += (
                        gram.sum(0).view(-1, min(piece, s - start)).sum(1)
                    )
    return dots.to(wide)
