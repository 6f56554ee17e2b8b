"""Operations that treat axis 0 as independent samples, differentiated one sample at a time: slow,
general, for rare uses of few numbers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from inrun.rules.factors import Aligned, Dense, Factor, SampleAxisError, by_sample, wide
from inrun.rules.registry import Call, rule, saves_output


@rule(
    torch.bmm,
    torch.baddbmm,
    torch.einsum,
    torch.cat,
    torch.Tensor.bmm,
    torch.Tensor.prelu,
    torch.prelu,
    F.prelu,
    F.conv_transpose1d,
    F.conv_transpose2d,
    F.conv_transpose3d,
    F.bilinear,
    F.scaled_dot_product_attention,
)
def one_sample_at_a_time(n: int, b: Tensor, call: Call) -> Factor:
    y = call.leaves[call.where].detach()
    aligned = y.dim() > 0 and y.shape[0] == b.shape[0] and n > 1 and call.operation in _BATCHED
    gradients = []
    for i in range(n):
        leaves = [
            by_sample(leaf.detach(), n)[i]
            if at not in call.shared or (aligned and leaf.shape[0] == b.shape[0])
            else leaf.detach()
            for at, leaf in enumerate(call.leaves)
        ]
        with torch.enable_grad():
            own = by_sample(y, n)[i] if aligned else y
            leaves[call.where] = wide(own).clone().requires_grad_()
            leaves = [wide(leaf) if leaf.is_floating_point() else leaf for leaf in leaves]
            out = call(leaves)
        rows = by_sample(b, n)[i]
        if out.shape != rows.shape:
            raise SampleAxisError(
                f"{getattr(call.operation, '__name__', call.operation)} on one sample gave "
                f"{tuple(out.shape)} where the batch had {tuple(rows.shape)} "
                "per sample: its axis 0 is not the sample axis"
            )
        gradients.append(torch.autograd.grad(out, leaves[call.where], rows.to(out.dtype))[0])
    return Aligned(torch.cat(gradients), n) if aligned else Dense(torch.stack(gradients))


#: operations whose every argument has the sample axis
_BATCHED = {torch.bmm, torch.baddbmm, torch.Tensor.bmm, torch.cat, F.scaled_dot_product_attention}

saves_output(F.scaled_dot_product_attention)
