"""Tables that are looked up: embeddings, and indexing a parameter with the batch's own indices.

Positions that do not depend on the batch (``wpe(arange(t))``) never come here: they are seen as a
function of the parameter alone.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

import inrun_kernels
from inrun.rules.embedding_bag import frequency_scale
from inrun.rules.factors import Factor, Rows, by_sample
from inrun.rules.protocols import Probes, Tracker
from inrun.rules.registry import NoRule, any_leading, compiled, fused, refuse, rule
from inrun_kernels import memory


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
    if padding_idx is not None:
        padding_idx = padding_idx % weight.shape[0]
        b = b.masked_fill((input == padding_idx).unsqueeze(-1), 0.0)
    return table_rows(n, b, input, weight)


@refuse(F.embedding)
def scaled_by_the_batch(
    input,
    weight,
    padding_idx=None,
    max_norm=None,
    norm_type=2.0,
    scale_grad_by_freq=False,
    sparse=False,
) -> str | None:
    return frequency_scale(scale_grad_by_freq)


@fused(F.embedding)
def fused_embedding(
    tracker: Tracker, input: Tensor, weight: Tensor, *rest, **options
) -> Tensor | None:
    origin = tracker.parameter(weight)
    plain = plain_lookup(input, weight, *rest, **options)
    if origin is None or plain is None or not tracker.plain(input):
        return None
    recorder = tracker.recorder

    def on_gradient(b: Tensor, ids: Tensor, w: Tensor) -> Tensor:
        recorder.sink("embedding", origin, embedding_weight(recorder.n, b, ids, w.detach()))
        return table_gradient(b, ids, w)

    return FusedTable.apply(*plain, on_gradient)


@compiled(F.embedding)
def compiled_embedding(
    probes: Probes, input: Tensor, weight: Tensor, padding_idx: int | None = None, *rest, **options
) -> Tensor | None:
    found = probes.of(weight)
    if found is None or padding_idx is not None or input.shape[0] != probes.n:
        return None
    return inrun_kernels.embedding(input, weight, *found)


@rule(torch.index_select, torch.Tensor.index_select, argument="input")
def index_select_rows(n: int, b: Tensor, input: Tensor, dim: int, index: Tensor) -> Factor:
    if dim not in (0, -input.dim()):
        raise NoRule
    return table_rows(n, b, index, input)


@rule(torch.Tensor.__getitem__, argument="self")
def getitem_rows(n: int, b: Tensor, self: Tensor, index) -> Factor:
    if isinstance(index, tuple) and len(index) == 1:
        index = index[0]
    if not isinstance(index, Tensor) or index.is_floating_point() or index.dtype == torch.bool:
        raise NoRule
    return table_rows(n, b, index % self.shape[0], self)


any_leading(F.embedding, torch.Tensor.__getitem__)


def table_rows(n: int, b: Tensor, ids: Tensor, table: Tensor) -> Rows:
    """The factor of rows of `table` [v,...] looked up by ids [n * r,...], b [*ids' shape,...]."""
    width = b.shape[ids.dim() :].numel()
    return Rows(by_sample(ids, n).reshape(n, -1), b.reshape(n, -1, width), tuple(table.shape))


class FusedTable(torch.autograd.Function):
    """Rows of a table w [v,i] by ids [n,...]. `sink(b, ids, w)` gets the output's gradient and
    returns the table's, or None.
    """

    @staticmethod
    def forward(ctx, ids, w, sink):
        ctx.save_for_backward(ids, w)
        ctx.sink = sink
        return F.embedding(ids, w)

    @staticmethod
    def backward(ctx, b):
        ids, w = ctx.saved_tensors
        with torch._C.DisableTorchFunction(), torch.no_grad():
            return None, ctx.sink(b.detach(), ids, w), None


def table_gradient(b: Tensor, ids: Tensor, w: Tensor) -> Tensor:
    """The table's gradient [v,i], in recycled memory: a table is zeroed and written at each
    step.
    """
    return add_rows(memory.empty(w.shape, w.dtype, w.device).zero_(), ids, b)


def add_rows(table: Tensor, ids: Tensor, b: Tensor) -> Tensor:
    return table.index_add_(0, ids.flatten(), b.reshape(-1, table.shape[1]).to(table.dtype))


class Lookups(TorchFunctionMode):
    """Keeps the gradients of look-ups out of the backward inside this context; `add` puts their
    rows into the gradient that came from elsewhere.

    The token table's gradient then comes from the head alone, where they are tied, and its look-ups
    cost their few rows instead of a second table. For evaluations whose gradients nobody else sees
    (targets), and first derivatives only.
    """

    def __init__(self):
        super().__init__()
        self._rows: list[tuple[int, Tensor, Tensor]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        plain = plain_lookup(*args, **kwargs) if func is F.embedding else None
        return func(*args, **kwargs) if plain is None else FusedTable.apply(*plain, self._keep)

    def _keep(self, b: Tensor, ids: Tensor, w: Tensor) -> None:
        self._rows.append((id(w), ids, b))

    def add(
        self, inputs: Sequence[Tensor], gradients: Sequence[Tensor | None]
    ) -> list[Tensor | None]:
        """The gradients with respect to `inputs`, whole; they are written to."""
        found = list(gradients)
        place = {id(w): at for at, w in enumerate(inputs)}
        for key, ids, b in self._rows:
            if key in place:
                at = place[key]
                table = found[at]
                if table is None:
                    found[at] = table_gradient(b, ids, inputs[at])
                    continue
                # autograd may give one tensor to two inputs (their sum was used), or one number to
                # a whole table
                if sum(other is table for other in found) > 1 or not table.is_contiguous():
                    table = table.clone(memory_format=torch.contiguous_format)
                found[at] = add_rows(table, ids, b)
        return found


def plain_lookup(
    input,
    weight,
    padding_idx=None,
    max_norm=None,
    norm_type=2.0,
    scale_grad_by_freq=False,
    sparse=False,
) -> tuple[Tensor, Tensor] | None:
    """(ids, table) of a call of F.embedding without options that change the gradient, else None."""
    plain = padding_idx is None and max_norm is None and not scale_grad_by_freq and not sparse
    return (input, weight) if plain and torch.is_grad_enabled() and weight.requires_grad else None
