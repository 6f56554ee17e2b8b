"""Per-token dots b_t^T V a_t, for a direction that is known only after the backward; token values
come free.

The sum over a sample's tokens is <g_n, V>. This is the route of the second-order term of Wang,
Mittal, Song, Jia (ICLR 2025), section 4.3, where V = H G needs the whole batch's gradient first,
and of per-token attribution.
"""

import torch
from torch import Tensor

from inrun_kernels import reference, shapes
from inrun_kernels.backend import accumulation_dtype, backend_for, operator

# Tokens a pass: [tokens, min(i,o)] in float32 stays under 1 MB at d = 768, and a GEMM of 256 rows
# runs at full speed.
CHUNK_TOKENS = 256


def contract_dots(a: Tensor, b: Tensor, V: Tensor) -> Tensor:
    """b^T V_k a of every token.

    a [...,i] inputs, b [...,o] output gradients with equal leading axes, V [k,o,i] directions ->
    [k,...], float32 (float64 if an input is float64). [n,t] axes give [k,n,t]; packed tokens [p]
    give [k,p]. Half-precision inputs are widened before the product: V a is as long as a sum as the
    dot itself, and rounding it to half precision costs 4e-3 of a median dot where rounding V costs
    6e-4. Raises ValueError for shapes that do not fit, TypeError for integer tensors.
    """
    if a.shape[:-1] != b.shape[:-1]:
        raise ValueError(
            f"contract_dots: a {list(a.shape)} and b {list(b.shape)} must have equal leading axes"
        )
    shapes.check_directions("contract_dots", V, (b.shape[-1], a.shape[-1]), "[k,o,i]")
    shapes.check_floating("contract_dots", a, b, V)
    return _contract_dots(a, b, V)


@operator("contract_dots")
def _contract_dots(a: Tensor, b: Tensor, V: Tensor) -> Tensor:
    backend = backend_for(a, b, V)
    if backend == "reference":
        return reference.contract_dots(a, b, V)
    packed_a, packed_b = shapes.pack(a), shapes.pack(b)
    if backend == "triton":
        from inrun_kernels.jit.contract_dots import launch

        dots = launch(packed_a, packed_b, V)
    else:
        dots = contract_packed(packed_a, packed_b, V)
    return dots.view(V.shape[0], *a.shape[:-1])


@_contract_dots.register_fake
def _(a, b, V):
    return V.new_empty((V.shape[0], *a.shape[:-1]), dtype=accumulation_dtype(a, b, V))


def contract_packed(a: Tensor, b: Tensor, V: Tensor) -> Tensor:
    """`contract_dots` on a [p,i], b [p,o] -> [k,p], the product taken on the narrower side of the
    layer.
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
