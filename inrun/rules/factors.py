"""The forms in which a per-sample gradient is held without being written out.

Axes: n train samples, t tokens, i in, o out, k directions. Every factor answers the same three
questions: `dots(V)` with ``V [k, *shape] -> [k, n]``, `dense(i)`, sample i's gradient written out,
and `tensors()`, what it keeps alive. StreamingDots are in float32, or in float64 for float64
inputs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

import inrun_kernels


class SampleAxisError(ValueError):
    """The samples of the batch cannot be found along axis 0 of an operation's tensor."""


def by_sample(x: Tensor, n: int) -> Tensor:
    """[n * r, ...] -> [n, r, ...]: the rows of a sample stand together.

    Raises:
        SampleAxisError: axis 0 is not a multiple of the number of samples.
    """
    if x.dim() == 0 or x.shape[0] % n:
        raise SampleAxisError(
            f"a tensor of shape {tuple(x.shape)} does not have its {n} samples along axis 0; "
            "samples must be the leading axis "
            "(batch_first=True), and the ids given to attr.batch(...) must be one per sample"
        )
    return x.reshape(n, x.shape[0] // n, *x.shape[1:])


def token_rows(x: Tensor, n: int) -> Tensor:
    """[n * r, ..., d] -> [n, t, d] with all axes between the samples and the last one folded into
    tokens.
    """
    return by_sample(x, n).reshape(n, -1, x.shape[-1])


def wide(x: Tensor) -> Tensor:
    """The tensor in the precision that dots are accumulated in; complex numbers stay complex."""
    if x.dtype in (torch.float64, torch.complex128):
        return x
    return x.to(torch.complex64) if x.is_complex() else x.float()


def in_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in the precision of `dtype`; complex numbers stay complex, and real ones real."""
    return x.to(dtype.to_complex() if x.is_complex() else dtype.to_real())


def as_real(x: Tensor) -> Tensor:
    """Complex numbers as pairs of real ones: ``Re <conj(g), V>`` is the product of the pairs."""
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def real_dot(g: Tensor, V: Tensor) -> Tensor:
    """``<g, V_k>``: g [*shape], V [k, *shape] -> [k]."""
    return (as_real(g) * as_real(V)).reshape(V.shape[0], -1).sum(1)


class Factor:
    """One use's per-sample gradients with respect to one argument of shape `shape`."""

    def dots(self, V: Tensor) -> Tensor:
        """``<g_n, V_k>``: V [k, *shape] -> [k, n]."""
        raise NotImplementedError

    def dense(self, i: int) -> Tensor:
        """Sample i's gradient, [*shape]."""
        raise NotImplementedError

    def tensors(self) -> tuple[Tensor, ...]:
        """What the factor keeps alive, for memory accounting."""
        raise NotImplementedError

    def finite(self, n: int) -> Tensor:
        """Whether all numbers of each sample are finite: bool [n]."""
        found = None
        for tensor in self.tensors():
            if tensor.is_floating_point():
                own = torch.isfinite(tensor).reshape(n, -1).all(1)
                found = own if found is None else found & own
        assert found is not None, "a factor has numbers"
        return found


@dataclass
class Outer(Factor):
    """``g_n = sum_t b_nt a_nt^T``, a [n,t,i], b [n,t,o], reshaped to the argument's `shape`."""

    a: Tensor
    b: Tensor
    shape: tuple[int, ...]

    def dots(self, V: Tensor) -> Tensor:
        return inrun_kernels.outer_dots(
            self.a, self.b, V.reshape(V.shape[0], self.b.shape[-1], self.a.shape[-1])
        )

    def dense(self, i: int) -> Tensor:
        return (wide(self.b[i]).T @ wide(self.a[i])).reshape(self.shape)

    def tensors(self) -> tuple[Tensor, ...]:
        return self.a, self.b


@dataclass
class Scaled(Factor):
    """Another factor times one number (the loss's own gradient, known only after the factor was
    formed).
    """

    factor: Factor
    scale: Tensor

    def dots(self, V: Tensor) -> Tensor:
        return self.scale * self.factor.dots(V)

    def dense(self, i: int) -> Tensor:
        return self.scale * self.factor.dense(i)

    def tensors(self) -> tuple[Tensor, ...]:
        return self.factor.tensors()


@dataclass
class Rows(Factor):
    """``g_n[ids_nt] += b_nt``: rows of a table, ids [n,t], b [n,t,d] with the rows that take no
    gradient already zeroed.
    """

    ids: Tensor
    b: Tensor
    shape: tuple[int, ...]

    def dots(self, V: Tensor) -> Tensor:
        return inrun_kernels.embedding_dots(
            self.ids, self.b, V.reshape(V.shape[0], self.shape[0], -1)
        ).sum(-1)

    def dense(self, i: int) -> Tensor:
        b = wide(self.b[i])
        return (
            b.new_zeros(self.shape[0], b.shape[-1])
            .index_add_(0, self.ids[i], b)
            .reshape(self.shape)
        )

    def tensors(self) -> tuple[Tensor, ...]:
        return self.ids, self.b


@dataclass
class Dense(Factor):
    """The per-sample gradients written out, g [n, *shape]: vectors, biases, filters of few
    numbers.
    """

    g: Tensor

    def dots(self, V: Tensor) -> Tensor:
        return inrun_kernels.sample_dots(as_real(self.g), as_real(V))

    def dense(self, i: int) -> Tensor:
        return wide(self.g[i])

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.g,)


@dataclass
class Aligned(Factor):
    """The argument has the sample axis itself (a class token expanded over the batch, a table
    repeated for samples and heads): sample n's gradient lives in its own slice, g [n * r, ...].
    """

    g: Tensor
    n: int

    def dots(self, V: Tensor) -> Tensor:
        products = as_real(wide(self.g)) * as_real(V)
        return products.reshape(V.shape[0], self.n, -1).sum(-1)

    def dense(self, i: int) -> Tensor:
        out, r = torch.zeros_like(wide(self.g)), self.g.shape[0] // self.n
        out[i * r : (i + 1) * r] = self.g[i * r : (i + 1) * r]
        return out

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.g,)
