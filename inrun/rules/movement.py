"""Operations that move, shape or overwrite numbers: what they need to know of their arguments."""

import torch

from inrun.rules.registry import in_place, likeness, places

likeness(
    torch.Tensor.expand_as,
    torch.Tensor.reshape_as,
    torch.Tensor.to,
    torch.Tensor.type_as,
    torch.Tensor.view_as,
)

_ROWS = ("index_copy", "index_fill", "index_add", "index_reduce", "scatter", "scatter_add")
places(
    *(getattr(torch, name) for name in _ROWS if hasattr(torch, name)),
    *(getattr(torch.Tensor, name) for name in _ROWS),
    *(getattr(torch.Tensor, name + "_") for name in _ROWS if hasattr(torch.Tensor, name + "_")),
)

# what they overwrite is not needed later
for _name in ("copy_", "fill_", "masked_fill_", "index_fill_", "masked_scatter_", "__setitem__"):
    in_place(getattr(torch.Tensor, _name))
