"""Every op as one formula: the mathematics of this floor, and the oracle of its tests.

Axes: n train samples, m validation samples, t and s tokens, p packed tokens (all samples one after the other), i in,
o out, v vocab, k directions. `a` is what entered a linear layer, `b` the gradient of the loss with respect to what left
it; the layer is y = x w^T with w [o, i], so that sample n's gradient is sum_t b_nt a_nt^T [o, i]. Sums are taken in
float32, or in float64 where an input is float64.

Source of the dot products: Wang, Mittal, Song, Jia, "Data Shapley in One Training Run" (ICLR 2025), section 4.2.
"""

from itertools import pairwise

import torch
from torch import Tensor

from kernels.backend import accumulation_dtype


def _wide(*tensors: Tensor) -> list[Tensor]:
    """The tensors in the dtype sums are taken in."""
    dtype = accumulation_dtype(*tensors)
    return [x.to(dtype) for x in tensors]


def per_sample_gradients(a: Tensor, b: Tensor, offsets: Tensor | None = None) -> Tensor:
    """g_n = sum_t b_nt a_nt^T. a [n,t,i], b [n,t,o] -> [n,o,i]; with offsets [n+1], a [p,i] and b [p,o]."""
    a, b = _wide(a, b)
    if offsets is None:
        return torch.einsum("nto,nti->noi", b, a)
    bounds = offsets.tolist()
    return torch.stack([torch.einsum("to,ti->oi", b[s:e], a[s:e]) for s, e in pairwise(bounds)])


def wgrad_dots(a: Tensor, b: Tensor, V: Tensor, offsets: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """sum_n g_n and <g_n, V_k>. a [n,t,i], b [n,t,o] (or packed), V [k,o,i] -> wgrad [o,i], dots [k,n]."""
    a, b, V = _wide(a, b, V)
    g = per_sample_gradients(a, b, offsets)
    return g.sum(0), torch.einsum("noi,koi->kn", g, V)


def outer_dots(a: Tensor, b: Tensor, V: Tensor, offsets: Tensor | None = None) -> Tensor:
    """<g_n, V_k>. a [n,t,i], b [n,t,o] (or packed), V [k,o,i] -> [k,n]."""
    return wgrad_dots(a, b, V, offsets)[1]


def contract_dots(a: Tensor, b: Tensor, V: Tensor) -> Tensor:
    """b_nt^T V_k a_nt: the share of one token. a [...,i], b [...,o], V [k,o,i] -> [k,...]."""
    a, b, V = _wide(a, b, V)
    return torch.einsum("...o,koi,...i->k...", b, V, a)


def embedding_dots(ids: Tensor, b: Tensor, V: Tensor) -> Tensor:
    """<b_nt, V_k[ids_nt]>: a linear layer of one-hot inputs. ids [...], b [...,o], V [k,v,o] -> [k,...]."""
    b, V = _wide(b, V)
    return torch.einsum("...o,k...o->k...", b, V[:, ids])
