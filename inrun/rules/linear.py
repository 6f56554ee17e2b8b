"""Linear maps: torch's linear, ``x @ w``, and addmm as Hugging Face's Conv1D calls it.

A tap beside torch's backward costs one more product of weight-gradient size. The fused form takes
the weight gradient itself sample by sample, and each sample's part is dotted (or kept) on its way
into the sum. The sum over samples is then associated in another order than torch's single product,
within the rounding that `inrun_kernels.wgrad_dots` states.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

import inrun_kernels
from inrun.rules.factors import Dense, Factor, Outer, token_rows, wide
from inrun.rules.protocols import Origin, Probes, Sink, Tracker
from inrun.rules.registry import NoRule, any_leading, compiled, fused, rule
from inrun_kernels.layers import autocast


@rule(F.linear, argument="weight")
def linear_weight(
    n: int, b: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Factor:
    # under autocast the product saw the input in b's dtype
    return Outer(token_rows(input, n).to(b.dtype), token_rows(b, n), tuple(weight.shape))


@rule(F.linear, argument="bias")
def linear_bias(n: int, b: Tensor, input: Tensor, weight: Tensor, bias: Tensor) -> Factor:
    return Dense(wide(token_rows(b, n)).sum(1))


@fused(F.linear)
def fused_linear(
    tracker: Tracker, input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor | None:
    return _fused(tracker, input, weight, bias, False)


def _fused(
    tracker: Tracker, x: Tensor, w: Tensor, bias: Tensor | None, transposed: bool
) -> Tensor | None:
    if tracker.parameter(w) is None or not tracker.plain(x):
        return None
    origins = [
        tracker.origin(tensor) if tensor is not None and tensor.requires_grad else None
        for tensor in (w, bias)
    ]
    return FusedLinear.apply(x, w, bias, transposed, tracker.recorder, *origins)


class FusedLinear(torch.autograd.Function):
    """y = x w^T + bias, with the weight gradient taken sample by sample in the backward.

    Transposed, as Conv1D has it: y = x w + bias with w [i, o].
    """

    @staticmethod
    def forward(ctx, x, w, bias, transposed, recorder, w_origin, bias_origin):
        ctx.recorder, ctx.w_origin, ctx.bias_origin = recorder, w_origin, bias_origin
        ctx.transposed = transposed
        ctx.x_dtype, ctx.w_dtype = x.dtype, w.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        x, w = autocast(x), autocast(w)  # once, for both directions
        ctx.save_for_backward(x, w)
        if not transposed:
            return F.linear(x, w, bias)
        return x @ w if bias is None else torch.addmm(autocast(bias), x, w)

    @staticmethod
    def backward(ctx, b):
        # detached: what the recorder keeps must not hold the graph, which holds the recorder
        x, w = (tensor.detach() for tensor in ctx.saved_tensors)
        to_x, to_w, to_bias = ctx.needs_input_grad[:3]
        n = ctx.recorder.n
        with torch._C.DisableTorchFunction(), torch.no_grad():
            back = w.t() if ctx.transposed else w
            dx = (b @ back.to(b.dtype)).to(ctx.x_dtype) if to_x else None
            wgrad = bias_grad = None
            if to_w:
                a, rows = token_rows(x, n).to(b.dtype), token_rows(b, n)
                if ctx.transposed:  # w's gradient is a^T b, so the two change places
                    a, rows = rows, a
                if ctx.w_origin is not None:
                    wgrad = _recorded(ctx.recorder, ctx.w_origin, a, rows, tuple(w.shape))
                if wgrad is None:
                    wgrad = rows.flatten(0, 1).t() @ a.flatten(0, 1)
                wgrad = wgrad.to(ctx.w_dtype)
            if to_bias:
                sums = wide(token_rows(b, n)).sum(1)
                bias_grad = sums.sum(0).to(ctx.bias_dtype)
                if ctx.bias_origin is not None:
                    ctx.recorder.sink("linear", ctx.bias_origin, Dense(sums))
        return dx, wgrad, bias_grad, None, None, None, None


def _recorded(
    recorder: Sink, origin: Origin, a: Tensor, b: Tensor, shape: tuple[int, ...]
) -> Tensor | None:
    """The weight gradient if it came out on the way to the recorder; a [n,t,i], b [n,t,o]."""
    V = recorder.directions_for(origin)
    if V is not None:
        wgrad, dots = inrun_kernels.wgrad_dots(a, b, V)
        recorder.take_dots(origin, dots, b.dtype)
        return wgrad
    g = recorder.buffer(shape, b)
    if g is None:
        recorder.sink("linear", origin, Outer(a, b, shape))
        return None
    torch.bmm(b.mT, a, out=g)
    recorder.sink("linear", origin, Dense(g))
    return inrun_kernels.sample_sum(g)


@compiled(F.linear)
def compiled_linear(
    probes: Probes, input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    found = probes.of(weight)
    if found is None:
        y = F.linear(input, weight, bias)
    else:
        y = inrun_kernels.linear(input, weight, bias, *found)
    return offset_dots(probes, y, bias)


def offset_dots(probes: Probes, y: Tensor, offset: Tensor | None) -> Tensor:
    """y [n,...,o] plus nothing: the probe's gradient is sum_t <b_nt, V_k>, the dots of an offset
    [o]; y itself where the offset is not valued.
    """
    found = probes.of(offset)
    if found is None:
        return y
    V, probe = found
    nothing = probe.mT @ V
    return y + nothing.view(probes.n, *(1,) * (y.dim() - 2), y.shape[-1]).to(y.dtype)


@rule(torch.addmm, torch.Tensor.addmm, argument="mat2")
def addmm_weight(
    n: int, b: Tensor, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta=1, alpha=1
) -> Factor:
    # mat2 is [i, o]: its gradient is a^T b, so the two change places
    return Outer(alpha * token_rows(b, n), token_rows(mat1, n).to(b.dtype), tuple(mat2.shape))


@rule(torch.addmm, torch.Tensor.addmm, argument="input")
def addmm_bias(
    n: int, b: Tensor, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta=1, alpha=1
) -> Factor:
    if input.dim() != 1:
        raise NoRule
    return Dense(beta * wide(token_rows(b, n)).sum(1))


@fused(torch.addmm, torch.Tensor.addmm)
def fused_addmm(
    tracker: Tracker, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta=1, alpha=1
) -> Tensor | None:
    plain = beta == 1 and alpha == 1 and input.dim() == 1 and not tracker.plain(input)
    return _fused(tracker, mat1, mat2, input, True) if plain else None


_MATMUL = (torch.matmul, torch.mm, torch.Tensor.matmul, torch.Tensor.mm, torch.Tensor.__matmul__)


@rule(*_MATMUL, argument="other")
def matmul_right(n: int, b: Tensor, input: Tensor, other: Tensor) -> Factor:
    if other.dim() != 2 or input.dim() < 2:
        raise NoRule
    return Outer(token_rows(b, n), token_rows(input, n).to(b.dtype), tuple(other.shape))


@rule(torch.mm, torch.Tensor.mm, argument="mat2")
def mm_right(n: int, b: Tensor, input: Tensor, mat2: Tensor) -> Factor:
    return matmul_right(n, b, input, mat2)


@fused(*_MATMUL)
def fused_matmul(tracker: Tracker, input: Tensor, other: Tensor) -> Tensor | None:
    plain = other.dim() == 2 and input.dim() >= 2
    return _fused(tracker, input, other, None, True) if plain else None


any_leading(F.linear, *_MATMUL)
