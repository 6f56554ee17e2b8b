"""Per-token dots of an embedding: the direction's row of each token with its gradient."""

import torch
from torch import Tensor

from inrun_kernels import reference, shapes
from inrun_kernels.backend import accumulation_dtype, backend_for, operator

CHUNK_TOKENS = 256


def embedding_dots(ids: Tensor, b: Tensor, V: Tensor) -> Tensor:
    """<b_t, V_k[ids_t]> of every token.

    ids [...] integer rows, b [...,o] gradients of the embedded tokens, V [k,v,o] directions ->
    [k,...], float32 (float64 if an input is float64). Tokens that receive no gradient (padding_idx)
    are the caller's to leave out: b = 0. Raises ValueError for shapes that do not fit, TypeError
    for dtypes, IndexError for an id outside the table.
    """
    if ids.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"embedding_dots: ids must be int32 or int64, not {ids.dtype}")
    if ids.shape != b.shape[:-1]:
        raise ValueError(
            f"embedding_dots: ids {list(ids.shape)} must be the leading axes of b {list(b.shape)}"
        )
    if V.ndim != 3 or V.shape[0] == 0 or V.shape[-1] != b.shape[-1]:
        raise ValueError(
            f"embedding_dots: V {list(V.shape)} must be [k,v,o] with o = {b.shape[-1]}, as in b"
        )
    shapes.check_floating("embedding_dots", b, V)
    return _embedding_dots(ids, b, V)


@operator("embedding_dots")
def _embedding_dots(ids: Tensor, b: Tensor, V: Tensor) -> Tensor:
    backend = backend_for(b, V)
    if backend == "reference":
        return reference.embedding_dots(ids, b, V)
    packed_ids, packed_b = ids.reshape(-1), shapes.pack(b)
    if backend == "triton":
        from inrun_kernels.jit.embedding_dots import launch

        dots = launch(packed_ids, packed_b, V)
    else:
        dots = _gather(packed_ids, packed_b, V)
    return dots.view(V.shape[0], *ids.shape)


@_embedding_dots.register_fake
def _(ids, b, V):
    return V.new_empty((V.shape[0], *ids.shape), dtype=accumulation_dtype(b, V))


def embedding(ids: Tensor, w: Tensor, V: Tensor, probe: Tensor) -> Tensor:
    """w[ids], whose backward adds <g_n, V_k> to the gradient of `probe`.

    The convention is in inrun_kernels.layers. ids [n,...] int32 or int64, w [v,o], V [k,v,o], probe
    [k,n] zeros -> [n,...,o] in the dtype of w. Raises ValueError for shapes that do not fit,
    TypeError for dtypes, IndexError for an id outside the table.
    """
    if ids.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"embedding: ids must be int32 or int64, not {ids.dtype}")
    shapes.check_directions("embedding", V, tuple(w.shape), "[k,v,o]")
    shapes.check_probe("embedding", probe, V.shape[0], ids.shape[0])
    shapes.check_floating("embedding", w, V)
    return _embedding(ids, w, V, probe)


@operator("embedding")
def _embedding(ids: Tensor, w: Tensor, V: Tensor, probe: Tensor) -> Tensor:
    return torch.nn.functional.embedding(ids, w)


@_embedding.register_fake
def _(ids, w, V, probe):
    return w.new_empty((*ids.shape, w.shape[1]))


def _save(ctx, inputs, output):
    ids, w, V, probe = inputs
    ctx.save_for_backward(ids, V)
    ctx.rows, ctx.probe_dtype = w.shape[0], probe.dtype


def _backward(ctx, gy):
    ids, V = ctx.saved_tensors
    _, to_w, _, to_probe = ctx.needs_input_grad
    gw = dots = None
    if to_w:
        wide = gy.to(accumulation_dtype(gy))
        gw = torch.ops.aten.embedding_dense_backward(wide, ids, ctx.rows, -1, False).to(gy.dtype)
    if to_probe:
        dots = (
            _embedding_dots(ids, gy, V).flatten(2).sum(-1)
            if ids.ndim > 1
            else _embedding_dots(ids, gy, V)
        )
        dots = dots.to(ctx.probe_dtype)
    return None, gw, None, dots


_embedding.register_autograd(_backward, setup_context=_save)


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
