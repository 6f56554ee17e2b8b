"""Tables that are looked up: embeddings, and indexing a parameter with the batch's own indices.

Positions that do not depend on the batch (``wpe(arange(t))``) never come here: they are seen as a
function of the parameter alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from inrun.rules.factors import Factor, Rows, by_sample
from inrun.rules.registry import NoRule, rule


@rule(F.embedding, argument="weight")
def embedding_weight(
    n: int,
    b: Tensor,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Factor:
    if scale_grad_by_freq:
        raise NoRule  # the scale depends on the other samples of the batch
    if padding_idx is not None:
        padding_idx = padding_idx % weight.shape[0]
        b = b.masked_fill((input == padding_idx).unsqueeze(-1), 0.0)
    return _rows(n, b, input, weight)


@rule(torch.index_select, torch.Tensor.index_select, argument="input")
def index_select_rows(n: int, b: Tensor, input: Tensor, dim: int, index: Tensor) -> Factor:
    if dim not in (0, -input.dim()):
        raise NoRule
    return _rows(n, b, index, input)


@rule(torch.Tensor.__getitem__, argument="self")
def getitem_rows(n: int, b: Tensor, self: Tensor, index) -> Factor:
    if isinstance(index, tuple) and len(index) == 1:
        index = index[0]
    if not isinstance(index, Tensor) or index.is_floating_point() or index.dtype == torch.bool:
        raise NoRule
    return _rows(n, b, index % self.shape[0], self)


def _rows(n: int, b: Tensor, ids: Tensor, table: Tensor) -> Factor:
    width = b.shape[ids.dim() :].numel()
    return Rows(by_sample(ids, n).reshape(n, -1), b.reshape(n, -1, width), tuple(table.shape))
