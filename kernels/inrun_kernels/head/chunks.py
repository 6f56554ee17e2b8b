"""One pass over the tokens of a head: the logits of one chunk of tokens at a time.

    z = x w^T     losses = logsumexp_v z_v - z[target]     b = weights (softmax(z) - onehot(target))

`HeadPass` packs the tokens and yields a `Chunk` with b after the other. What is summed over the
chunks is the consumer's. Against logits in memory this is also the faster head on a CPU.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from inrun_kernels import memory, shapes
from inrun_kernels.backend import accumulation_dtype

# One chunk's logits. Every chunk streams w, V and the total once, so that fewer tokens pay more for
# them; 160 MB are 833 tokens of GPT-2's vocabulary in float32. Two cores, d=256: b w runs at 173
# GFLOP/s with 512 tokens, 188 with 667. The GPU's size is a guess.
LOGITS_BYTES = 160 * 1024 * 1024
GPU_LOGITS_BYTES = 512 * 1024 * 1024
# Rows of logits whose softmax is taken at a time on a CPU: 8 rows of 50257 float32 are 1.6 MB and
# stay in L2.
SOFTMAX_BYTES = 1536 * 1024

Span = tuple[int, int]


class Part(NamedTuple):
    """The tokens of one sample in a chunk."""

    sample: int
    """Which sample."""
    rows: slice
    """Its rows of the chunk."""
    fresh: bool
    """Whether they are the sample's first."""


class Chunk(NamedTuple):
    """A piece of the packed tokens with the gradient of their logits."""

    tokens: slice
    """Which of the packed tokens."""
    x: Tensor
    """Their inputs [c,i]."""
    b: Tensor
    """Gradient of the weighted losses with respect to the logits [c,v], 0 where there is no target;
    overwritten by the next chunk."""
    parts: list[Part]
    """The samples in it; empty where the cut takes no notice of samples."""


class HeadPass:
    """Packed tokens of a head z = x w^T and the pass over them, a chunk of logits at a time.

    x [n,t,i], w [v,i], targets [n,t]; weights [n,t], None for the mean over the tokens that have a
    target. `backend` takes the softmax; the formula's ("reference") is torch's here.
    """

    def __init__(
        self,
        x: Tensor,
        w: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        ignore_index: int,
        backend: str,
    ):
        self.samples, self.length = targets.shape
        self.x, self.w = shapes.pack(x), memory.cast(w, x.dtype)
        self.counted, self.labels, self.factors = packed_targets(x, targets, weights, ignore_index)
        self.losses = torch.empty(self.x.shape[0], dtype=self.factors.dtype, device=x.device)
        self.triton = backend == "triton"

    def gradients(self, by_sample: bool = False) -> Iterator[Chunk]:
        """Chunk after chunk with the gradient of its logits; its losses are written to `losses`.

        A chunk is as many tokens as fit the buffer, or by sample: several whole samples or a piece
        of one.
        """
        limit = self._tokens_of_a_chunk()
        cuts = spans_by_sample(self.samples, self.length, limit) if by_sample else self._even(limit)
        for spans, tokens, z in self._logits(cuts, padded=self.triton):
            labels, factors, losses = self.labels[tokens], self.factors[tokens], self.losses[tokens]
            if self.triton:
                from inrun_kernels.jit.cross_entropy import launch

                launch(z, labels, factors, losses)
            else:
                softmax_gradient(z, labels, factors, losses)
            yield Chunk(tokens, self.x[tokens], z, self._parts(spans) if by_sample else [])

    def token_losses(self) -> Tensor:
        """`losses` [p] of all tokens, without gradients, 0 where there is no target."""
        for _, tokens, z in self._logits(self._even(self._tokens_of_a_chunk()), padded=False):
            losses, labels = self.losses[tokens], self.labels[tokens]
            for block in cached_rows(z, losses.itemsize):
                p = z[block].to(losses.dtype)
                losses[block] = softmax_losses(p, labels[block, None])
        return self.losses.mul_(self.counted)

    def _logits(
        self, cuts: list[list[Span]], padded: bool
    ) -> Iterator[tuple[list[Span], slice, Tensor]]:
        """(spans, tokens, logits [c,v] in a buffer that the next chunk overwrites) of every cut."""
        vocabulary = self.w.shape[0]
        # Kernels read rows 16 bytes at a time, if rows start on such a boundary: 50257 columns are
        # kept in rows of 50304.
        width = -(-vocabulary // 64) * 64 if padded else vocabulary
        rows = max(spans[-1][1] - spans[0][0] for spans in cuts)
        buffer = memory.empty((rows, width), self.x.dtype, self.x.device)
        if padded:
            buffer[:, vocabulary:] = 0
        for spans in cuts:
            tokens = slice(spans[0][0], spans[-1][1])
            z = buffer[: tokens.stop - tokens.start, :vocabulary]
            yield spans, tokens, torch.mm(self.x[tokens], self.w.t(), out=z)

    def _tokens_of_a_chunk(self) -> int:
        """Tokens whose logits fit the buffer."""
        budget = GPU_LOGITS_BYTES if self.x.is_cuda else LOGITS_BYTES
        return max(1, budget // (self.w.shape[0] * self.x.itemsize))

    def _even(self, limit: int) -> list[list[Span]]:
        """One span of `limit` tokens to a chunk, wherever samples end."""
        tokens = self.x.shape[0]
        return [[(start, min(start + limit, tokens))] for start in range(0, tokens, limit)]

    def _parts(self, spans: list[Span]) -> list[Part]:
        first, t = spans[0][0], self.length
        return [Part(s // t, slice(s - first, e - first), s % t == 0) for s, e in spans]


def check_head(op: str, x: Tensor, w: Tensor, targets: Tensor, weights: Tensor | None) -> None:
    """Raise ValueError or TypeError unless x [n,t,i], w [v,i], targets and weights [n,t] fit."""
    if x.ndim != 3 or w.ndim != 2 or x.shape[-1] != w.shape[1] or targets.shape != x.shape[:2]:
        raise ValueError(
            f"{op}: x {list(x.shape)} must be [n,t,i], w {list(w.shape)} [v,i], targets "
            f"{list(targets.shape)} [n,t]"
        )
    if targets.numel() == 0:
        raise ValueError(f"{op}: targets {list(targets.shape)} hold no token")
    if targets.dtype != torch.int64:
        raise TypeError(f"{op}: targets must be int64, not {targets.dtype}")
    if weights is not None and weights.shape != targets.shape:
        raise ValueError(
            f"{op}: weights {list(weights.shape)} must be [n,t] = {list(targets.shape)}"
        )
    shapes.check_floating(op, x, w)


def packed_targets(
    x: Tensor, targets: Tensor, weights: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(counted [p] bool, targets [p], weights [p] in the accumulation dtype) of packed tokens.

    Targets and weights are 0 where a token has no target; weights None: the mean over the others.
    """
    targets = targets.reshape(-1)
    counted = targets != ignore_index
    wide = accumulation_dtype(x)
    if weights is None:
        factors = counted.to(wide) / counted.sum()
    else:
        factors = torch.where(counted, weights.reshape(-1).to(wide), 0)
    return counted, torch.where(counted, targets, 0), factors


def unit_weights(x: Tensor, targets: Tensor) -> Tensor:
    """The weights [n,t] of a sum over tokens."""
    return torch.ones_like(targets, dtype=accumulation_dtype(x))


def spans_by_sample(n: int, t: int, limit: int) -> list[list[Span]]:
    """Spans of packed tokens by chunk, at most `limit` tokens to a chunk.

    Several whole samples to a chunk, or a long sample in pieces.
    """
    if t <= limit:
        group = limit // t
        return [
            [(s * t, s * t + t) for s in range(g, min(g + group, n))] for g in range(0, n, group)
        ]
    piece = -(-t // -(-t // limit))
    return [[(s * t + p, s * t + min(p + piece, t))] for s in range(n) for p in range(0, t, piece)]


def cached_rows(z: Tensor, itemsize: int) -> Iterator[slice]:
    """Blocks of rows of z [c,v] that stay in a core's cache, `itemsize` bytes an element.

    On a GPU all rows at once.
    """
    rows = z.shape[0] if z.is_cuda else max(1, SOFTMAX_BYTES // (z.shape[1] * itemsize))
    return (slice(start, start + rows) for start in range(0, z.shape[0], rows))


def softmax_gradient(z: Tensor, labels: Tensor, factors: Tensor, losses: Tensor) -> None:
    """Replace logits z [c,v] by factors (softmax(z) - onehot) and write the losses [c]."""
    for block in cached_rows(z, losses.itemsize):
        logits, label = z[block], labels[block, None]
        p = logits.to(losses.dtype)
        losses[block] = softmax_losses(p, label)
        p.mul_(factors[block, None])
        p.scatter_add_(1, label, -factors[block, None])
        if p is not logits:
            logits.copy_(p)


def softmax_losses(z: Tensor, label: Tensor) -> Tensor:
    """Replace z [c,v] by its softmax and return the losses [c] of label [c,1].

    logsumexp = max z - log max p: max p is at least 1/v, so that the logarithm is as accurate as
    the softmax, where -log p[label] would underflow.
    """
    target, top = z.gather(1, label)[:, 0], z.amax(1)
    torch.softmax(z, 1, out=z)
    return top - z.amax(1).log_() - target


def add_product(total: Tensor, left: Tensor, right: Tensor, fresh: bool) -> None:
    """total += left^T right, or = if it is `fresh`.

    Products of half precision are rounded once, then added in the total's dtype.
    """
    if total.dtype != left.dtype:
        product = torch.mm(left.t(), right)
        total.copy_(product) if fresh else total.add_(product)
    elif fresh:
        torch.mm(left.t(), right, out=total)
    else:
        total.addmm_(left.t(), right)


def save_gradients(ctx, inputs, output) -> None:
    """Keep the gradients (all outputs but the loss) that an operation formed in its forward."""
    ctx.save_for_backward(*output[1:])
    # the other outputs have no gradient, and zeros in their place would be a table of the
    # vocabulary's size
    ctx.set_materialize_grads(False)
