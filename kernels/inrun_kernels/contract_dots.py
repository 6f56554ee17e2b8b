"""Per-token dots b_t^T V a_t of a linear layer: a route of `outer_dots` and `wgrad_dots`.

The sum over a sample's tokens is <g_n, V>. It is the route of short samples, of one direction, and
of token values, where every token is a sample.
"""

import torch
from torch import Tensor

from inrun_kernels.backend import accumulation_dtype

# Tokens a pass: [tokens, min(i,o)] in float32 stays under 1 MB at d = 768, and a GEMM of 256 rows
# runs at full speed.
CHUNK_TOKENS = 256


def contract_packed(a: Tensor, b: Tensor, V: Tensor) -> Tensor:
    """b^T V_k a [k,p] of every token: a [p,i], b [p,o], V [k,o,i].

    In float32 (float64 if an input is). The product is taken on the narrower side of the layer.
    Inputs of half precision are widened before it: V a is as long as a sum as the dot itself, and
    rounding it to half precision costs 4e-3 of a median dot where rounding V costs 6e-4.
    """
    wide = accumulation_dtype(a, b, V)
    dots = torch.empty(V.shape[0], a.shape[0], dtype=wide, device=a.device)
    outwards = b.shape[1] <= a.shape[1]
    buffer = torch.empty(CHUNK_TOKENS, min(a.shape[1], b.shape[1]), dtype=wide, device=a.device)
    for first in range(0, a.shape[0], CHUNK_TOKENS):
        chunk = slice(first, first + CHUNK_TOKENS)
        inputs, gradients = a[chunk].to(wide), b[chunk].to(wide)
        product = buffer[: inputs.shape[0]]
        for dot, direction in zip(dots, V):
            if outwards:
                torch.mm(inputs, direction.to(wide).t(), out=product)
                product.mul_(gradients)
            else:
                torch.mm(gradients, direction.to(wide), out=product)
                product.mul_(inputs)
            torch.sum(product, -1, out=dot[chunk])
    return dots
