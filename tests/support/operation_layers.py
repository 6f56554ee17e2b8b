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


def one_expert(w, x):
    expert = torch.tensor(1)  # of a list that the batch decided
    return F.linear(x, w[expert])


OPERATIONS = {
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
RANDOM = {"dropped weight": Dropped}
