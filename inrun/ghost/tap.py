"""An identity that sees the gradient which comes back to an operation's result."""

import torch


class Tap(torch.autograd.Function):
    """Identity. Its backward hands (b, saved leaves) to the sink and passes b on untouched."""

    @staticmethod
    def forward(ctx, out, sink, constants, *saved):
        ctx.save_for_backward(*saved)
        ctx.sink, ctx.constants = sink, constants
        ctx.mark_dirty(
            out
        )  # hand back the very tensor, not a view of it: in-place operations on it stay legal
        return out

    @staticmethod
    def backward(ctx, b):
        saved = iter(ctx.saved_tensors)
        # detached: what the sink keeps must not hold the graph, which holds the sink (a cycle that
        # no collector sees)
        leaves = [next(saved).detach() if leaf is None else leaf for leaf in ctx.constants]
        # the mode is active in the user's backward too; what happens here is ours
        with torch._C.DisableTorchFunction(), torch.no_grad():
            ctx.sink(b.detach(), leaves)
        return b, None, None, *(None for leaf in ctx.constants if leaf is None)
