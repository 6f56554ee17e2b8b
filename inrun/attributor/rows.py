"""Declared owners: which sample each row of a micro-batch belongs to."""

import numpy as np
import torch
from torch import Tensor


def owners_of(rows, n: int) -> Tensor | None:
    """The owner 0..n-1 of each row, int64 [r] on the CPU, from what `batch(ids, rows=)` was given.

    Raises:
        ValueError: no integers [r], out of range, or a sample without a row.
    """
    if rows is None:
        return None
    owner = rows.detach().cpu() if isinstance(rows, Tensor) else torch.from_numpy(np.array(rows))
    if owner.dim() != 1 or owner.dtype.is_floating_point or owner.dtype in _NO_INTEGERS:
        raise ValueError(
            "rows must be one integer per row, the place 0..n-1 of its sample among the ids, not "
            f"{str(owner.dtype).removeprefix('torch.')} of shape {tuple(owner.shape)}"
        )
    owner = owner.to(torch.int64)
    outside = owner[(owner < 0) | (owner >= n)]
    if len(outside):
        raise ValueError(
            f"rows name the place of a sample among the {n} ids, 0 to {n - 1}; {int(outside[0])} "
            "is none of them (they are places, not ids)"
        )
    without = sorted(set(range(n)) - set(owner.tolist()))
    if without:
        raise ValueError(
            f"the samples at places {', '.join(map(str, without[:8]))} of the ids own no row; "
            "leave their ids out, or check rows"
        )
    return owner


_NO_INTEGERS = {torch.bool, torch.complex64, torch.complex128}
