"""A layer's Hessian-vector product from its inputs, output gradients and their tangents.

    wgrad = sum_t b_t a_t^T
    (H u) = sum_t b_t da_t^T + db_t a_t^T    along a direction u of all weights

da and db are the tangents of a and b: what a forward-mode pass through forward and backward gives.
Both products go into one accumulator in one pass over the tokens. H G is what the second-order term
of Wang, Mittal, Song, Jia (ICLR 2025), section 4.3, needs.
"""

import torch
from torch import Tensor

from inrun_kernels import reference, shapes
from inrun_kernels.backend import accumulation_dtype, backend_for, operator


def ghost_hvp(a: Tensor, b: Tensor, da: Tensor, db: Tensor) -> Tensor:
    """sum over all tokens of b da^T + db a^T.

    a, da [...,i] inputs and tangents, b, db [...,o] output gradients and tangents, equal leading
    axes -> [o,i], float32 (float64 if an input is float64). Half-precision inputs are widened on
    the CPU: HVPs cancel. Raises ValueError for shapes that do not fit, TypeError for integer
    tensors.
    """
    if a.shape != da.shape or b.shape != db.shape or a.shape[:-1] != b.shape[:-1]:
        raise ValueError(
            f"ghost_hvp: a {list(a.shape)} and da {list(da.shape)} must be [...,i], b "
            f"{list(b.shape)} and db {list(db.shape)} [...,o], with equal leading axes"
        )
    shapes.check_floating("ghost_hvp", a, b, da, db)
    return _ghost_hvp(a, b, da, db)


@operator("ghost_hvp")
def _ghost_hvp(a: Tensor, b: Tensor, da: Tensor, db: Tensor) -> Tensor:
    backend = backend_for(a, b, da, db)
    if backend == "reference":
        a, b, da, db = (x.reshape(1, -1, x.shape[-1]) for x in (a, b, da, db))
        return reference.ghost_hvp(a, b, da, db)
    a, b, da, db = (shapes.pack(x) for x in (a, b, da, db))
    if backend == "triton":
        from inrun_kernels.jit.ghost_hvp import launch

        return launch(a, b, da, db)
    wide = accumulation_dtype(a, b, da, db)
    a, b, da, db = (x.to(wide) for x in (a, b, da, db))
    return torch.mm(b.t(), da).addmm_(db.t(), a)


@_ghost_hvp.register_fake
def _(a, b, da, db):
    return a.new_empty((b.shape[-1], a.shape[-1]), dtype=accumulation_dtype(a, b, da, db))
