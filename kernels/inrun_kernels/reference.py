"""Every op as one formula: the mathematics of this floor, and the oracle of its tests.

Axes: n train samples, m validation samples, t and s tokens, p packed tokens (all samples one after
the other), i in, o out, v vocab, k directions. `a` is what entered a linear layer, `b` the gradient
of the loss with respect to what left it; the layer is y = x w^T with w [o, i], so that sample n's
gradient is sum_t b_nt a_nt^T [o, i]. Sums are taken in float32, or in float64 where an input is
float64.

Source of the dot products: Wang, Mittal, Song, Jia, "Data Shapley in One Training Run" (ICLR 2025),
section 4.2.
"""

from itertools import pairwise

import torch
from torch import Tensor

from inrun_kernels.backend import accumulation_dtype


def _wide(*tensors: Tensor) -> list[Tensor]:
    """The tensors in the dtype sums are taken in."""
    dtype = accumulation_dtype(*tensors)
    return [x.to(dtype) for x in tensors]


def per_sample_gradients(a: Tensor, b: Tensor, offsets: Tensor | None = None) -> Tensor:
    """g_n = sum_t b_nt a_nt^T: a [n,t,i], b [n,t,o] -> [n,o,i].

    With offsets [n+1]: a [p,i] and b [p,o].
    """
    a, b = _wide(a, b)
    if offsets is None:
        return torch.einsum("nto,nti->noi", b, a)
    bounds = offsets.tolist()
    return torch.stack([torch.einsum("to,ti->oi", b[s:e], a[s:e]) for s, e in pairwise(bounds)])


def wgrad_dots(
    a: Tensor, b: Tensor, V: Tensor, offsets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """sum_n g_n [o,i] and <g_n, V_k> [k,n]: a [n,t,i], b [n,t,o] (or packed), V [k,o,i]."""
    a, b, V = _wide(a, b, V)
    g = per_sample_gradients(a, b, offsets)
    return g.sum(0), torch.einsum("noi,koi->kn", g, V)


def outer_dots(a: Tensor, b: Tensor, V: Tensor, offsets: Tensor | None = None) -> Tensor:
    """<g_n, V_k>. a [n,t,i], b [n,t,o] (or packed), V [k,o,i] -> [k,n]."""
    return wgrad_dots(a, b, V, offsets)[1]


def embedding_dots(ids: Tensor, b: Tensor, V: Tensor) -> Tensor:
    """<b_nt, V_k[ids_nt]> [k,...], a linear layer of one-hot inputs.

    ids [...], b [...,o], V [k,v,o].
    """
    b, V = _wide(b, V)
    return torch.einsum("...o,k...o->k...", b, V[:, ids])


def ghost_hvp(a: Tensor, b: Tensor, da: Tensor, db: Tensor) -> Tensor:
    """(H u)[o,i] of a layer = sum_t b_t da_t^T + db_t a_t^T.

    a, da [m,t,i]; b, db [m,t,o] with tangents da, db along u.
    """
    a, b, da, db = _wide(a, b, da, db)
    return torch.einsum("mto,mti->oi", b, da) + torch.einsum("mto,mti->oi", db, a)


def pairwise_dots(a: Tensor, b: Tensor, av: Tensor, bv: Tensor) -> Tensor:
    """<g_n, g_m>, the paper's ghost dot product: sum_ts (a_nt . av_ms)(b_nt . bv_ms).

    a [n,t,i], b [n,t,o], av [m,s,i], bv [m,s,o] -> [n,m].
    """
    a, b, av, bv = _wide(a, b, av, bv)
    return torch.einsum("nti,msi,nto,mso->nm", a, av, b, bv)


def norm_dots(
    x: Tensor,
    b: Tensor,
    rstd: Tensor,
    V: Tensor,
    mean: Tensor | None = None,
    bias_V: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients [i] of scale and shift of a norm, and dots [k,n] of each sample's share.

    y = (x - mean) rstd w + bias, g_n = sum_t b (x - mean) rstd; RMSNorm: mean None. x, b [n,t,i];
    rstd, mean [n,t]; V, bias_V [k,i].
    """
    x, b, rstd, V = _wide(x, b, rstd, V)
    centred = x if mean is None else x - mean.to(x)[..., None]
    weight = torch.einsum("nti,nti,nt->ni", b, centred, rstd)
    bias = b.sum(1)
    dots = torch.einsum("ni,ki->kn", weight, V)
    if bias_V is not None:
        dots = dots + torch.einsum("ni,ki->kn", bias, bias_V.to(bias))
    return weight.sum(0), bias.sum(0), dots


def linear_cross_entropy_dots(
    x: Tensor, w: Tensor, targets: Tensor, V: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Token losses [n,t], dx [n,t,i], wgrad [v,i] and dots [k,n] of a head with its loss.

    sum_nt weights_nt (logsumexp_v z_ntv - z_nt[target]), z = x w^T; x [n,t,i], w [v,i], targets
    [n,t], V [k,v,i], weights [n,t].
    """
    x, w, V, weights = _wide(x, w, V, weights)
    z = torch.einsum("nti,vi->ntv", x, w)
    losses = z.logsumexp(-1) - z.gather(-1, targets[..., None])[..., 0]
    b = (z.softmax(-1) - torch.nn.functional.one_hot(targets, w.shape[0])) * weights[..., None]
    wgrad, dots = wgrad_dots(x, b, V)
    return losses, torch.einsum("ntv,vi->nti", b, w), wgrad, dots
