"""Operations whose own backward takes the dots: a linear layer, the language-model head with its
loss, and the look-up in a token table.

A tap beside torch's backward costs one more product of weight-gradient size. Here the weight
gradient itself is taken sample by sample, and each sample's part is dotted (or kept) on its way
into the sum. The sum over samples is then associated in another order than torch's single product,
within the rounding that inrun_kernels.wgrad_dots states; this is the one place where attribution
may change the last bits of the training.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

import inrun_kernels
from inrun.ghost.origin import Origin
from inrun.rules.factors import Dense, Factor, token_rows, wide
from inrun_kernels import memory
from inrun_kernels.layers import autocast


class FusedLinear(torch.autograd.Function):
    """y = x w^T + bias; the recorder takes (a, b) of the weight and may give the weight gradient in
    return.
    """

    @staticmethod
    def forward(ctx, x, w, bias, recorder, w_origin: Origin | None, bias_origin: Origin | None):
        ctx.recorder, ctx.w_origin, ctx.bias_origin = recorder, w_origin, bias_origin
        ctx.x_dtype, ctx.w_dtype, ctx.bias_dtype = (
            x.dtype,
            w.dtype,
            None if bias is None else bias.dtype,
        )
        x, w = autocast(x), autocast(w)  # once, for both directions
        ctx.save_for_backward(x, w)
        return F.linear(x, w, bias)

    @staticmethod
    def backward(ctx, b):
        # detached, as in inrun.ghost.uses: what the recorder keeps must not hold the graph, which
        # holds the recorder
        x, w = (tensor.detach() for tensor in ctx.saved_tensors)
        to_x, to_w, to_bias = ctx.needs_input_grad[:3]
        n = ctx.recorder.n
        with torch._C.DisableTorchFunction(), torch.no_grad():
            dx = (b @ w.to(b.dtype)).to(ctx.x_dtype) if to_x else None
            wgrad = bias_grad = None
            if to_w:
                a, rows = token_rows(x, n).to(b.dtype), token_rows(b, n)
                if ctx.w_origin is not None:
                    wgrad = ctx.recorder.outer(ctx.w_origin, a, rows, tuple(w.shape))
                if wgrad is None:
                    wgrad = rows.flatten(0, 1).t() @ a.flatten(0, 1)
                wgrad = wgrad.to(ctx.w_dtype)
            if to_bias:
                sums = wide(token_rows(b, n)).sum(1)
                bias_grad = sums.sum(0).to(ctx.bias_dtype)
                if ctx.bias_origin is not None:
                    ctx.recorder.sink("linear", ctx.bias_origin, Dense(sums))
        return dx, wgrad, bias_grad, None, None, None


class FusedHead(torch.autograd.Function):
    """`inrun_kernels.cross_entropy_sum` of hidden states x [n,t,i], w [v,i]; everything is formed
    in the forward, at an incoming gradient of one.
    """

    @staticmethod
    def forward(ctx, x, w, targets, ignore_index, recorder, origin: Origin):
        loss, dx, wgrad, part = recorder.head(origin, x.detach(), w.detach(), targets, ignore_index)
        ctx.save_for_backward(dx, wgrad)
        ctx.recorder, ctx.origin, ctx.part = recorder, origin, part
        return loss

    @staticmethod
    def backward(ctx, gradient):
        dx, wgrad = ctx.saved_tensors
        with torch._C.DisableTorchFunction(), torch.no_grad():
            ctx.recorder.head_part(ctx.origin, ctx.part, gradient)
            scaled = [memory.scaled(saved, gradient) for saved in (dx, wgrad)]
            return *scaled, None, None, None, None


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
    return _add_rows(memory.empty(w.shape, w.dtype, w.device).zero_(), ids, b)


def _add_rows(table: Tensor, ids: Tensor, b: Tensor) -> Tensor:
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
                found[at] = _add_rows(table, ids, b)
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


class HeadFactor(Factor):
    """The head's per-sample gradients, formed again from hidden states when they are asked for: x
    [n,t,i], w [v,i], times the loss's own gradient.
    """

    def __init__(self, x: Tensor, w: Tensor, targets: Tensor, ignore_index: int, gradient: Tensor):
        self.x, self.w, self.targets, self.ignore_index, self.gradient = (
            x,
            w.detach(),
            targets,
            ignore_index,
            gradient,
        )

    def dots(self, V: Tensor) -> Tensor:
        return self.gradient * inrun_kernels.cross_entropy_sum_dots(
            self.x, self.w, self.targets, V, ignore_index=self.ignore_index
        )

    def dense(self, i: int) -> Tensor:
        one = slice(i, i + 1)
        return self.gradient * wide(
            inrun_kernels.cross_entropy_sum_per_sample(
                self.x[one], self.w, self.targets[one], ignore_index=self.ignore_index
            )[2][0]
        )

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.x,)
