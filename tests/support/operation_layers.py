"""The smallest models that hold one operation on a parameter each; used by
tests/engine/test_operations.py.

Axes: n samples, t tokens, d features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

T, D = 3, 4


class Applied(nn.Module):
    """``operation(w, x)`` of x [n, t, d], beside it an ordinary layer."""

    def __init__(self, operation, *shape: int):
        super().__init__()
        self.w = nn.Parameter(torch.randn(shape))
        self.layer = nn.Linear(D, D)
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        return self.operation(self.w, torch.tanh(self.layer(x)))


def added_in_place(w, x):
    h = x * 1.0
    h += w
    return h


def places_added_in_place(w, x):
    h = x.clone()
    h += F.embedding(torch.arange(T)[None], w)
    return h.tanh()


class SelfAttention(nn.Module):
    """torch's own attention: samples on axis 0, or on axis 1 inside."""

    def __init__(self, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(D, 2, **options)
        self.batch_first = self.attention.batch_first

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.batch_first else x.transpose(0, 1)
        out, _ = self.attention(x, x.tanh(), x, need_weights=False)
        return out if self.batch_first else out.transpose(0, 1)


class Recurrent(nn.Module):
    """A recurrent network, of which the states and the last one are used."""

    def __init__(self, kind, **options):
        super().__init__()
        self.net = kind(D, 3, **options)

    def forward(self, x: Tensor) -> Tensor:
        out, last = self.net(x if self.net.batch_first else x.transpose(0, 1))
        last = last[0] * last[1].tanh() if isinstance(last, tuple) else last
        out = out if self.net.batch_first else out.transpose(0, 1)
        return torch.cat([out.flatten(1), last.transpose(0, 1).flatten(1)], 1)


class Product(torch.autograd.Function):
    """x w^T and its rows' sums, with a backward of its own that can be differentiated."""

    @staticmethod
    def forward(ctx, x, scale, w):
        ctx.save_for_backward(x, w)
        ctx.scale = scale
        return scale * x @ w.T, x.sum(-1)

    @staticmethod
    def backward(ctx, b, sums):
        x, w = ctx.saved_tensors
        grad_w = ctx.scale * torch.einsum("nto,nti->oi", b, x)
        return ctx.scale * b @ w + sums.unsqueeze(-1), None, grad_w


class Straight(torch.autograd.Function):
    """Rounded weights, the gradient of the weights themselves: of weights alone."""

    @staticmethod
    def forward(ctx, w):
        return (4 * w).round() / 4

    @staticmethod
    def backward(ctx, b):
        return 1.5 * b


def own_product(w, x):
    y, sums = Product.apply(x, 0.5, 2 * w)
    return y * sums.unsqueeze(-1)


def own_of_own(w, x):
    rounded = Straight.apply(1 * w)  # of itself, the target could not be looked at elsewhere
    return Product.apply(x, 2.0, rounded)[0] + F.linear(x, Straight.apply(2 * rounded).sin())


def encoder():
    return nn.TransformerEncoderLayer(D, 2, 8, dropout=0.0, batch_first=True)


def part_added_in_place(w, x):
    h = x.clone()
    h[:, 0] += w
    return h.tanh()


def multiplied_in_place(w, x):
    h = x.clone()
    h *= w
    return h.tanh()


def written_into_rows(w, x):
    """A learnt token in the place of some, as masked models have it."""
    h = x.clone()
    h[x.detach()[..., 0] > 0] = w
    return h.tanh() + x


def data_added_into_a_function_of_weights(w, x):
    h = (2 * w).expand(len(x), -1, -1).clone()
    h += x
    return h.tanh()


def weights_written_into_a_constant(w, x):
    table = torch.zeros(T, D, dtype=w.dtype)
    table[1:] = w
    table *= 2
    return x * table


def left_product(w, x):
    """``W @ x``, as selective state spaces have it."""
    return w @ x


class Dropped(nn.Module):
    """DropConnect: the mask of a weight is drawn once for the whole batch."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.dropout(self.layer.weight, 0.5, self.training), self.layer.bias)


def through_fourier(w, x):
    return torch.fft.irfft(torch.fft.rfft(x, n=2 * D) * torch.fft.rfft(w, n=2 * D), n=2 * D)


def as_complex(w, x):
    """Rotations: a complex number from two real parameters meets complex data."""
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(turned * torch.polar(1 + w[0] ** 2, w[1])).flatten(-2)


def rows_replaced(w, x):
    """peft's trainable tokens: rows of a frozen table are parameters."""
    table = torch.linspace(-1, 1, 7 * D, dtype=w.dtype).view(7, D)
    whole = table.index_copy(0, torch.tensor([1, 5]), w)
    return F.embedding((x.detach()[..., 0] > 0).long() * 4 + 1, whole) + x


def routed(w, x):
    """Tokens go to experts by their numbers, and back, as Hugging Face's eager experts do."""
    tokens = x.flatten(0, 1)
    chosen = (tokens.detach().sum(1) * 5).long() % 3
    out = torch.zeros_like(tokens)
    for expert in chosen.unique():
        (at,) = torch.where(chosen == expert)
        out.index_add_(0, at, F.linear(tokens[at], w[expert]).tanh())
    return out.view_as(x)


def one_expert(w, x):
    expert = torch.tensor(1)  # of a list that the batch decided
    return F.linear(x, w[expert])


class Bags(nn.Module):
    """EmbeddingBag: of each sample one bag of ids, or two bags of several lengths."""

    def __init__(self, mode: str, ragged: bool = False, **options):
        super().__init__()
        self.table, self.ragged = nn.EmbeddingBag(7, D, mode=mode, **options), ragged
        self.weighted = mode == "sum"

    def forward(self, x: Tensor) -> Tensor:
        ids = (x.detach().flatten(1) * 3).long() % 7
        weights = x.detach().flatten(1) if self.weighted else None
        if not self.ragged:
            return self.table(ids, per_sample_weights=weights)
        starts = torch.arange(len(x)) * ids.shape[1]
        offsets = torch.stack([starts, starts + 2 + ids[:, 0] % 3], 1).flatten()
        flat = None if weights is None else weights.flatten()
        return self.table(ids.flatten(), offsets, flat).unflatten(0, (len(x), 2))


OPERATIONS = {
    "attention": lambda: SelfAttention(batch_first=True),
    "attention, tokens first": lambda: SelfAttention(add_bias_kv=True),
    "attention, other widths": lambda: SelfAttention(batch_first=True, kdim=D, vdim=D, bias=False),
    "encoder layer": encoder,
    "encoder of layers": lambda: nn.TransformerEncoder(encoder(), 2, enable_nested_tensor=False),
    "LSTM": lambda: Recurrent(nn.LSTM, batch_first=True),
    "LSTM of layers, both ways": lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True),
    "GRU": lambda: Recurrent(nn.GRU, batch_first=True, num_layers=2),
    "GRU, tokens first": lambda: Recurrent(nn.GRU),
    "RNN": lambda: Recurrent(nn.RNN, batch_first=True, nonlinearity="relu"),
    "LSTM cell": Applied(
        lambda w, x: torch.lstm_cell(x[:, 0], (x[:, 1], x[:, 2]), w, w.new_ones(4 * D, D))[1],
        4 * D,
        D,
    ),
    "own function": Applied(own_product, D, D),
    "own functions of weights": Applied(own_of_own, D, D),
    "batch norm of a weight": Applied(
        lambda w, x: F.linear(x, F.batch_norm(w.T, None, None, training=True)), D, 3
    ),
    "rows of experts": Applied(routed, 3, D, D),
    "broadcast together": Applied(
        lambda w, x: torch.stack(torch.broadcast_tensors(x, w)).prod(0), D
    ),
    "squared distance": Applied(lambda w, x: F.mse_loss(x, w.expand_as(x), reduction="none"), T, D),
    "layer norm, native": Applied(
        lambda w, x: torch.native_layer_norm(x, [D], w, None, 1e-5)[0], D
    ),
    "normalized weight": Applied(lambda w, x: F.linear(x, F.normalize(w, dim=1)), 3, D),
    "cosine": Applied(lambda w, x: F.cosine_similarity(x, w, dim=-1), D),
    "bags, sum": lambda: Bags("sum"),
    "bags, mean": lambda: Bags("mean"),
    "bags, mean, padding": lambda: Bags("mean", padding_idx=2),
    "bags, max": lambda: Bags("max"),
    "ragged bags, sum": lambda: Bags("sum", ragged=True),
    "ragged bags, mean": lambda: Bags("mean", ragged=True, padding_idx=1),
    "h += w": Applied(added_in_place, T, D),
    "h += places": Applied(places_added_in_place, T + 1, D),
    "h[:, 0] += w": Applied(part_added_in_place, D),
    "h *= w": Applied(multiplied_in_place, D),
    "h[mask] = w": Applied(written_into_rows, D),
    "w += data": Applied(data_added_into_a_function_of_weights, 1, T, D),
    "weights written into a constant": Applied(weights_written_into_a_constant, T - 1, D),
    "addcmul_": Applied(lambda w, x: (x * 1).addcmul_(w, x, value=0.3).tanh(), D),
    "expand_as": Applied(lambda w, x: x * w.expand_as(x) + x, T, D),
    "to": Applied(lambda w, x: F.linear(x, w.to(x)), D, D),
    "type_as": Applied(lambda w, x: x + w.type_as(x), D),
    "W @ x": Applied(left_product, 2, T),
    "W @ x of batches": Applied(left_product, 1, 2, T),
    "w.view(-1) @ x": Applied(lambda w, x: torch.matmul(w, x), T),
    "x @ w": Applied(lambda w, x: torch.matmul(x, w), D),
    "tensordot": Applied(lambda w, x: torch.tensordot(x, w, dims=([2], [1])), 5, D),
    "cdist": Applied(lambda w, x: torch.cdist(x, w.expand(len(x), -1, -1)), 2, D),
    "outer": Applied(lambda w, x: torch.einsum("i,ntd->nti", w, x), 2),
    "cumulative": Applied(lambda w, x: torch.logaddexp(x, w), D),
    "pow": Applied(lambda w, x: (x**2 + 1) ** w, D),
    "clamp": Applied(lambda w, x: torch.clamp(x, min=w), D),
    "kron": Applied(lambda w, x: F.linear(x, torch.kron(w, torch.eye(2, dtype=w.dtype))), 2, 2),
    "complex through Fourier": Applied(through_fourier, D),
    "complex of two real": Applied(as_complex, 2, D // 2),
    "index_copy": Applied(rows_replaced, 2, D),
    "one of several experts": Applied(one_expert, 2, D, D),
    "matrix exponential": Applied(lambda w, x: x @ torch.matrix_exp(w), D, D),
    "weight norm, parametrization": lambda: weight_norm(nn.Linear(D, D)),
    "weight norm of a convolution": lambda: nn.Sequential(weight_norm(nn.Conv1d(T, 2, 2))),
    "spectral norm": lambda: spectral_norm(nn.Linear(D, D)).eval(),
}
#: whose forward draws for the whole micro-batch
RANDOM = {
    "dropped weight": Dropped,
    "LSTM with dropout": lambda: Recurrent(nn.LSTM, num_layers=2, batch_first=True, dropout=0.5),
}
