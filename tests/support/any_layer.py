"""Models whose layers have no rule, each with its samples' losses: for tests of route='whole' and
of what refusals advise.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: samples, and the learning rate of `truth`
N, LR = 4, 0.1


@dataclass
class Example:
    """A model, the share of each sample in a loss, the loss of all at once, and a target."""

    model: nn.Module
    share: Callable[[int], Tensor]
    together: Callable[[], Tensor]
    target: Callable[[], Tensor]

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        """By parameter's name, written out; zeros where the loss does not use it."""
        names, weights = zip(*self.model.named_parameters())
        found = torch.autograd.grad(loss, weights, allow_unused=True)
        dense = [torch.zeros_like(w) if g is None else g.to_dense() for w, g in zip(weights, found)]
        return dict(zip(names, dense))

    def parts(self) -> dict[str, Tensor]:
        """``lr <g_i, grad target>`` [N] by parameter: one sample's share at a time."""
        V, each = self.gradients(self.target()), [self.gradients(self.share(i)) for i in range(N)]
        return {name: LR * torch.stack([inner(g[name], V[name]) for g in each]) for name in V}

    def truth(self) -> Tensor:
        """The values [N] of first order under SGD."""
        return torch.stack(list(self.parts().values())).sum(0)


def inner(a: Tensor, b: Tensor) -> Tensor:
    """The real inner product, of complex tensors too."""
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    return (a * b).sum()


def regression(model: nn.Module, *shape: int, draw: Callable = torch.randn) -> Example:
    """Mean squared error of a model that makes two numbers of an input of this shape."""
    x, xv = draw(N, *shape), draw(3, *shape)
    y, yv = torch.randn(N, 2).double(), torch.randn(3, 2).double()
    if x.is_floating_point():
        x, xv = x.double(), xv.double()
    model = model.double()
    return Example(
        model,
        lambda i: F.mse_loss(model(x[i : i + 1]), y[i : i + 1]) / N,
        lambda: F.mse_loss(model(x), y),
        lambda: F.mse_loss(model(xv), yv),
    )


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]):
        super().__init__()
        self.cells, self.out = kind(5, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x):
        return self.out(self.cells(x)[0][:, -1])


class Times(torch.autograd.Function):
    """A product with a derivative of its own."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w.T

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g @ w, g.T @ x


class OwnFunction(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.out = nn.Parameter(torch.randn(5, 6)), nn.Linear(5, 2)

    def forward(self, x):
        return self.out(torch.tanh(Times.apply(x, self.w)))


class Contracted(nn.Module):
    """A weight in an operation that has no rule."""

    def __init__(self):
        super().__init__()
        self.w, self.out = nn.Parameter(torch.randn(5, 6)), nn.Linear(5, 2)

    def forward(self, x):
        return self.out(torch.tensordot(x, self.w, dims=([1], [1])))


class Distances(nn.Module):
    """Distances from learnt points; torch has no forward-mode derivative of them."""

    def __init__(self):
        super().__init__()
        self.points, self.out = nn.Parameter(torch.randn(5, 6)), nn.Linear(5, 2)

    def forward(self, x):
        return self.out(torch.cdist(x, self.points))


class Dropped(nn.Module):
    """Dropout on a weight; the caller seeds it."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(2, 6))

    def forward(self, x):
        return F.linear(x, F.dropout(self.w, 0.5, self.training))


class Bags(nn.Module):
    """Means of rows of a table whose gradient is sparse."""

    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(9, 5, sparse=True), nn.Linear(5, 2)

    def forward(self, x):
        return self.out(self.table(x).mean(1))


class Waves(nn.Module):
    """A complex weight."""

    def __init__(self):
        super().__init__()
        self.w, self.out = nn.Parameter(torch.randn(6, 5, dtype=torch.complex128)), nn.Linear(5, 2)

    def forward(self, x):
        return self.out((x.to(self.w.dtype) @ self.w).abs())


def dropped() -> Example:
    """Weight dropout; every sample of a batch has its own draw, the target none."""
    made = regression(Dropped(), 6)

    def target() -> Tensor:
        made.model.eval()
        loss = made.target()
        made.model.train()
        return loss

    def share(i: int) -> Tensor:
        torch.manual_seed(i)
        return made.share(i)

    return Example(made.model, share, made.together, target)


def nested() -> Example:
    """Rows of unequal number in a nested tensor."""
    model = nn.Linear(5, 4).double()
    x = [torch.randn(rows, 5).double() for rows in (2, 4, 3, 1)]
    y, xv, yv = (torch.randn(k, d).double() for k, d in ((N, 4), (3, 5), (3, 4)))

    def loss(those: list[int]) -> Tensor:
        out = model(torch.nested.nested_tensor([x[i] for i in those], layout=torch.jagged))
        rows = zip(out.unbind(), those)
        return sum((row.mean(0) - y[i]).square().mean() for row, i in rows) / N

    target = lambda: F.mse_loss(model(xv), yv)  # noqa: E731
    return Example(model, lambda i: loss([i]), lambda: loss(list(range(N))), target)


def penalised() -> Example:
    """A loss that contains a gradient."""
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    x, y = torch.randn(N, 6).double(), torch.randn(N, 2).double()

    def loss(these: slice) -> Tensor:
        at = x[these].clone().requires_grad_()
        error = F.mse_loss(model(at), y[these], reduction="sum") / N
        (g,) = torch.autograd.grad(error, at, create_graph=True)
        return error + g.square().sum()

    return Example(
        model,
        lambda i: loss(slice(i, i + 1)),
        lambda: loss(slice(None)),
        lambda: F.mse_loss(model(x + 1), y),
    )


def experts() -> Example:
    """Experts of a Hugging Face model as it builds them by default: a grouped product."""
    transformers = __import__("transformers")
    model = transformers.MixtralForCausalLM(
        transformers.MixtralConfig(
            vocab_size=31,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            num_local_experts=4,
            num_experts_per_tok=2,
            max_position_embeddings=16,
        )
    )
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    tokens, val = torch.randint(0, 31, (N, 7)), torch.randint(0, 31, (3, 7))

    def loss(rows: Tensor) -> Tensor:
        logits = model(input_ids=rows).logits[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())

    return Example(
        model,
        lambda i: loss(tokens[i : i + 1]) / N,
        lambda: loss(tokens),
        lambda: loss(val),
    )


def words(*shape: int) -> Tensor:
    return torch.randint(0, 9, shape)


#: name -> how it is made
EXAMPLES: dict[str, Callable[[], Example]] = {
    "LSTM": lambda: regression(Recurrent(nn.LSTM), 3, 5),
    "GRU": lambda: regression(Recurrent(nn.GRU), 3, 5),
    "an autograd function of one's own": lambda: regression(OwnFunction(), 6),
    "an operation without a rule": lambda: regression(Contracted(), 6),
    "no forward derivative": lambda: regression(Distances(), 6),
    "weight dropout": dropped,
    "nested tensors": nested,
    "a gradient penalty": penalised,
    "grouped experts": experts,
    "a sparse table": lambda: regression(Bags(), 3, draw=words),
    "a complex weight": lambda: regression(Waves(), 6),
}
