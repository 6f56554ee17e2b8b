"""Batches whose rows are not the samples in order, each with every sample's own share of the loss;
for tests/engine/test_rows.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

N = 4
SIZES = [3, 5, 2, 6]


@dataclass
class Case:
    """A model and a batch.

    Attributes:
        share: sample i's part of the batch's loss, computed from its data alone.
        rows: the owner of each row, None where it is found without.
    """

    model: nn.Module
    loss: Callable[[], Tensor]
    share: Callable[[int], Tensor]
    target: Callable[[], Tensor]
    rows: Tensor | None = None


class Graphs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 1)
        self.scale = nn.Parameter(torch.randn(6))

    def forward(self, nodes, graph, count):
        h = self.norm(torch.tanh(self.a(nodes))) * self.scale
        return self.b(h.new_zeros(count, 6).index_add(0, graph, h))


def graphs() -> Case:
    """Nodes of four graphs, in no order."""
    of = torch.arange(N).repeat_interleave(torch.tensor(SIZES))[torch.randperm(sum(SIZES))]
    x, y, net = torch.randn(len(of), 5), torch.randn(N, 1), Graphs()
    none = torch.zeros(len(of), dtype=torch.long)

    def share(i):
        mine = of == i
        return F.mse_loss(net(x[mine], none[mine], 1), y[i : i + 1]) / N

    xv, yv = torch.randn(6, 5), torch.randn(2, 1)
    of_v = torch.tensor([0, 0, 1, 1, 1, 1])
    target = lambda: F.mse_loss(net(xv, of_v, 2), yv)  # noqa: E731
    return Case(net, lambda: F.mse_loss(net(x, of, N), y), share, target, of)


def pairs() -> Case:
    """Both halves of pairs, put together before the block."""
    net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1))
    both, val = torch.randn(2 * N, 5), torch.randn(6, 5)

    def losses(x):
        score = net(x).squeeze(-1)
        return -F.logsigmoid(score[: len(x) // 2] - score[len(x) // 2 :])

    share = lambda i: losses(both[[i, N + i]]).sum() / N  # noqa: E731
    rows = torch.arange(N).repeat(2)
    return Case(net, lambda: losses(both).mean(), share, lambda: losses(val).mean(), rows)


def sequence_first() -> Case:
    """Samples along axis 1."""
    table, hidden, head = nn.Embedding(11, 6), nn.Linear(6, 6), nn.Linear(6, 3)
    model = nn.ModuleList([table, hidden, head])
    f = lambda tokens: head(torch.tanh(hidden(table(tokens))).mean(0))  # noqa: E731
    x, y = torch.randint(0, 11, (8, N)), torch.randint(0, 3, (N,))
    xv, yv = torch.randint(0, 11, (8, 3)), torch.randint(0, 3, (3,))
    share = lambda i: F.cross_entropy(f(x[:, i : i + 1]), y[i : i + 1]) / N  # noqa: E731
    target = lambda: F.cross_entropy(f(xv), yv)  # noqa: E731
    return Case(model, lambda: F.cross_entropy(f(x), y), share, target, torch.arange(N))


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.router, self.out = nn.Linear(5, 2), nn.Linear(5, 1)
        self.experts = nn.ModuleList(nn.Linear(5, 5) for _ in range(2))

    def forward(self, x):
        flat = x.reshape(-1, 5)
        weight, index = self.router(flat).softmax(-1).max(-1)
        mixed = torch.zeros_like(flat)
        for j, expert in enumerate(self.experts):
            rows = torch.where(index == j)[0]
            mixed = mixed.index_add(0, rows, torch.tanh(expert(flat[rows])) * weight[rows, None])
        return self.out(mixed.reshape(*x.shape).mean(1))


class Frames(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 3, 3), nn.Linear(27, 1)

    def forward(self, x):
        frames = x.view(len(x), 3, 2, 5, 5)
        h = self.conv(frames.flatten(0, 1))
        return self.head(h.reshape(*frames.shape[:2], -1).mean(1))


class RepeatedBias(nn.Module):
    def __init__(self, product: bool):
        super().__init__()
        self.product = product
        self.q, self.b = nn.Linear(6, 6), nn.Parameter(torch.randn(2, 3, 3))
        self.out = nn.Linear(18, 1)

    def forward(self, x):
        n, t, _ = x.shape
        q = self.q(x).view(n, t, 2, 3).transpose(1, 2).reshape(n * 2, t, 3)
        table = self.b.repeat(n, 1, 1)
        if self.product:
            table = torch.bmm(q, table.transpose(1, 2))
        scores = torch.bmm(q, q.transpose(1, 2)) + table
        return self.out(torch.bmm(scores.softmax(-1), q).reshape(n, -1))


class OneByOne(nn.Module):
    """Each sample goes through the layers alone."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 4), nn.Linear(4, 1)

    def forward(self, x):
        return self.b(torch.stack([torch.tanh(self.a(own)).mean(0) for own in x.unbind()]))


def of_model(model: nn.Module, *shape: int) -> Case:
    """A model of samples along axis 0, whatever it does inside."""
    x, y = torch.randn(N, *shape), torch.randn(N, 1)
    xv, yv = torch.randn(3, *shape), torch.randn(3, 1)
    share = lambda i: F.mse_loss(model(x[i : i + 1]), y[i : i + 1]) / N  # noqa: E731
    target = lambda: F.mse_loss(model(xv), yv)  # noqa: E731
    return Case(model, lambda: F.mse_loss(model(x), y), share, target)


def packed(model: nn.Module, vocab: int) -> Case:
    """Documents packed in one row [1, t] that do not see each other."""
    length, owner = sum(SIZES), torch.arange(N).repeat_interleave(torch.tensor(SIZES))
    tokens, places = torch.randint(0, vocab, (1, length)), [torch.arange(s) for s in SIZES]
    seen = (owner[:, None] == owner) & torch.ones(length, length).tril().bool()
    mask = torch.zeros(1, 1, length, length).masked_fill(~seen, torch.finfo(torch.float64).min)
    ends = torch.tensor(SIZES).cumsum(0)
    labels = tokens[0].roll(-1)
    labels[ends - 1] = -100
    count, val = length - N, torch.randint(0, vocab, (2, 5))

    def loss():
        logits = model(
            input_ids=tokens,
            position_ids=torch.cat(places)[None],
            attention_mask=mask,
            use_cache=False,
        ).logits[0]
        return F.cross_entropy(logits, labels, reduction="sum") / count

    def share(i):
        own = tokens[:, ends[i] - SIZES[i] : ends[i]]
        logits = model(own, use_cache=False).logits[0]
        return F.cross_entropy(logits[:-1], own[0, 1:], reduction="sum") / count

    def target():
        logits = model(val, use_cache=False).logits[:, :-1]
        return F.cross_entropy(logits.reshape(-1, vocab), val[:, 1:].reshape(-1))

    return Case(model, loss, share, target, owner)
