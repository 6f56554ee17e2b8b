"""The smallest models that hold one way of using a parameter each. All float64, all parameters
random (a gain of 1 or an offset of 0 would hide a mistake).

Axes: n samples, t tokens, d features, v vocabulary.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

VOCAB, WIDTH, LENGTH = 11, 6, 5


def seeded(model: nn.Module) -> nn.Module:
    """Float64, every parameter moved off its initial value."""
    model = model.double()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, dtype=torch.float64, generator=generator))
    return model


class Conv1D(nn.Module):
    """A linear layer as Hugging Face's GPT-2 writes it: weight [i, o], addmm on flattened
    tokens.
    """

    def __init__(self, i: int, o: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(i, o) / math.sqrt(i))
        self.bias = nn.Parameter(torch.zeros(o))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
        return y.view(*x.shape[:-1], -1)


class Product(nn.Module):
    """``x @ w``."""

    def __init__(self, i: int, o: int):
        super().__init__()
        self.w = nn.Parameter(torch.randn(i, o) / math.sqrt(i))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w


class Einsum(nn.Module):
    """``einsum("nti,oi->nto")``."""

    def __init__(self, i: int, o: int):
        super().__init__()
        self.w = nn.Parameter(torch.randn(o, i) / math.sqrt(i))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nti,oi->nto", x, self.w)


class Folded(nn.Module):
    """A layer that gets its tokens as rows [n * t, i]."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)


class Twice(nn.Module):
    """One layer used for the tokens, then for their mean, then for the tokens again."""

    def __init__(self, d: int):
        super().__init__()
        self.layer = nn.Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.layer(x))
        x = x + self.layer(x.mean(1))[:, None]
        return torch.tanh(self.layer(x))


class Gains(nn.Module):
    """Parameters without a module of their own: a gain, an offset, a temperature without axes, one
    number per sample, a mixture of two paths.
    """

    def __init__(self, d: int):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(d))
        self.offset = nn.Parameter(torch.zeros(d))
        self.temperature = nn.Parameter(torch.tensor(1.5))
        self.mixture = nn.Parameter(torch.full((1, 1, d), 0.4))
        self.level = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(x / self.temperature) * self.gain + self.offset
        y = y + (self.level.expand(x.shape[0]) * x.mean((1, 2)))[:, None, None]
        return torch.lerp(y, x, self.mixture) + self.mixture * y


class ClassToken(nn.Module):
    """A learnt token [1, 1, d], expanded over the batch and put in front."""

    def __init__(self, d: int):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, d))
        self.layer = nn.Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        return (x + torch.tanh(self.layer(x.mean(1, keepdim=True))))[:, 1:]


class RMSGain(nn.Module):
    """RMSNorm written out, as Llama has it."""

    def __init__(self, d: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class LoRA(nn.Module):
    """A frozen layer with a low-rank adapter, beside it or multiplied into its weight."""

    def __init__(self, d: int, merged: bool):
        super().__init__()
        self.base = nn.Linear(d, d)
        self.base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(2, d) / d)
        self.up = nn.Parameter(torch.zeros(d, 2))
        self.merged = merged

    def forward(self, x: Tensor) -> Tensor:
        if self.merged:
            return torch.tanh(
                F.linear(x, self.base.weight + 0.5 * self.up @ self.down, self.base.bias)
            )
        return torch.tanh(self.base(x) + 0.5 * F.linear(F.linear(x, self.down), self.up))


class Experts(nn.Module):
    """Two layers, of which a micro-batch uses one (chosen by its first sample's sign); a third is
    never used.
    """

    def __init__(self, d: int):
        super().__init__()
        self.left, self.right, self.idle = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.left(x) if float(x.detach()[0].sum()) > 0 else self.right(x))


class Counter(nn.Module):
    """A layer whose forward writes to a buffer."""

    def __init__(self, d: int):
        super().__init__()
        self.layer = nn.Linear(d, d)
        self.seen: Tensor
        self.mean: Tensor
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(d))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        self.seen.add_(y.shape[0])
        self.mean.lerp_(y.detach().flatten(0, -2).mean(0), 0.1)
        return torch.tanh(y)


class Block(nn.Module):
    """A transformer block: attention written out or fused, layer norms, MLP."""

    def __init__(
        self,
        d: int,
        fused: bool = False,
        conv1d: bool = False,
        checkpointed: bool = False,
        drop: float = 0.0,
    ):
        super().__init__()
        linear = Conv1D if conv1d else nn.Linear
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = linear(d, 3 * d), linear(d, d)
        self.up, self.down = linear(d, 2 * d), linear(2 * d, d)
        self.drop = nn.Dropout(drop)
        self.fused, self.checkpointed = fused, checkpointed

    def _forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = (
            z.view(n, t, 2, d // 2).transpose(1, 2) for z in self.qkv(self.norm1(x)).split(d, -1)
        )
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = q @ k.mT / math.sqrt(d // 2)
            hidden = torch.ones(t, t, dtype=torch.bool).triu(1)
            y = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v
        x = x + self.drop(self.out(y.transpose(1, 2).reshape(n, t, d)))
        return x + self.drop(self.down(F.gelu(self.up(self.norm2(x)))))

    def forward(self, x: Tensor) -> Tensor:
        return (
            checkpoint(self._forward, x, use_reentrant=False)
            if self.checkpointed
            else self._forward(x)
        )


class Text(nn.Module):
    """Tokens [n, t] to logits [n, t, v]: embedding, positions, a body, a head.

    Args:
        body: [n, t, d] -> [n, t, d].
        positions: how they are held and looked up: "none"; "row", "flat", "batch" look a table up
            with indices [1, t], [t], [n, t]; "parameter", "slice" are a parameter [1, t, d], and
            the first t rows of one [t + 2, d].
        tied: the head's weight is the embedding's.
        padding_idx: row of the embedding that takes no gradient.
        head_bias: the head has a bias.
    """

    def __init__(
        self,
        body: nn.Module,
        positions: str = "none",
        tied: bool = False,
        padding_idx: int | None = None,
        head_bias: bool = False,
    ):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH, padding_idx=padding_idx)
        self.positions = positions
        self.place: Any  # an embedding or a parameter, as `positions` has it
        if positions in ("row", "flat", "batch"):
            self.place = nn.Embedding(LENGTH + 2, WIDTH)
        elif positions != "none":
            shape = (1, LENGTH, WIDTH) if positions == "parameter" else (LENGTH + 2, WIDTH)
            self.place = nn.Parameter(torch.zeros(shape))
        self.body = body
        self.head = nn.Linear(WIDTH, VOCAB, bias=head_bias)
        if tied:
            self.head.weight = self.embed.weight

    def _positions(self, n: int, t: int) -> Tensor | float:
        match self.positions:
            case "row":
                return self.place(torch.arange(t)[None])
            case "flat":
                return self.place(torch.arange(t))
            case "batch":
                return self.place(torch.arange(t)[None].expand(n, t))
            case "parameter":
                return self.place
            case "slice":
                return self.place[:t]
            case _:
                return 0.0

    def features(self, tokens: Tensor) -> Tensor:
        """What enters the head, [n, t, d]."""
        return self.body(self.embed(tokens) + self._positions(*tokens.shape))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.features(tokens))
