"""Per-token dots of an embedding: gather the direction's row of each token, dot it with the token's output gradient."""

import torch
from torch import Tensor

from kernels import reference, shapes
from kernels.backend import accumulation_dtype, backend_for

CHUNK_TOKENS = 256


def embedding_dots(ids: Tensor, b: Tensor, V: Tensor) -> Tensor:
    """<b_t, V_k[ids_t]> of every token.

    ids [...] integer rows, b [...,o] gradients of the embedded tokens, V [k,v,o] directions -> [k,...], float32
    (float64 if an input is float64). Tokens that receive no gradient (padding_idx) are the caller's to leave out: b = 0.
    Raises ValueError for shapes that do not fit, TypeError for dtypes, IndexError for an id outside the table.
    """
    if ids.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"embedding_dots: ids must be int32 or int64, not {ids.dtype}")
    if ids.shape != b.shape[:-1]:
        raise ValueError(f"embedding_dots: ids {list(ids.shape)} must be the leading axes of b {list(b.shape)}")
    if V.ndim != 3 or V.shape[0] == 0 or V.shape[-1] != b.shape[-1]:
        raise ValueError(f"embedding_dots: V {list(V.shape)} must be [k,v,o] with o = {b.shape[-1]}, as in b")
    shapes.check_floating("embedding_dots", b, V)
    if backend_for(b, V) == "reference":
        return reference.embedding_dots(ids, b, V)
    return _gather(ids.reshape(-1), shapes.pack(b), V).view(V.shape[0], *ids.shape)


def _gather(ids: Tensor, b: Tensor, V: Tensor) -> Tensor:
    """ids [p], b [p,o] -> [k,p], rows gathered a chunk of tokens at a time."""
    wide = accumulation_dtype(b, V)
    dots = torch.empty(V.shape[0], ids.shape[0], dtype=wide, device=b.device)
    for first in range(0, ids.shape[0], CHUNK_TOKENS):
        chunk = slice(first, first + CHUNK_TOKENS)
        gradients = b[chunk].to(wide)
        for dot, direction in zip(dots, V):
            rows = direction.index_select(0, ids[chunk]).to(wide)
            torch.sum(rows.mul_(gradients), -1, out=dot[chunk])
    return dots
