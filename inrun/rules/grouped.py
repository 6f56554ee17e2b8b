"""Factors of rows made factors of samples: what a rule says of each row, added up by owner.

A rule cuts axis 0 into equal parts. Where the samples are not equal parts of it, the rule is asked
for its rows instead, as if each were a sample, and the rows are put together by their owners. Outer
products and looked-up rows are sorted by sample once, and the packed kernels take it from there.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

import inrun_kernels
from inrun.rules.factors import Aligned, Dense, Factor, Outer, Rows, as_real, wide
from inrun.rules.layout import Owners


def grouped(factor: Factor, owners: Owners) -> Factor:
    """The factor of the samples, from one of as many "samples" as there are rows with an owner."""
    if isinstance(factor, Dense):
        return Dense(owners.sums(wide(factor.g)))
    if isinstance(factor, Aligned):
        return Owned(factor.g, 0, owners)
    if isinstance(factor, Outer | Rows):
        order, offsets = owners.sorted(factor.b.device)
        width = factor.b.shape[1]
        first = factor.a if isinstance(factor, Outer) else factor.ids
        first, b = (x.index_select(0, order).flatten(0, 1) for x in (first, factor.b))
        packed = PackedOuter if isinstance(factor, Outer) else PackedRows
        return packed(first, b, [width * offset for offset in offsets], factor.shape)
    return Grouped(factor, owners)


@dataclass
class PackedOuter(Factor):
    """``g_n = sum_p b_p a_p^T`` over sample n's rows, a [p,i], b [p,o], sorted by sample."""

    a: Tensor
    b: Tensor
    offsets: list[int]
    """[n + 1]: sample n has the rows offsets[n] to offsets[n + 1]"""
    shape: tuple[int, ...]

    def dots(self, V: Tensor) -> Tensor:
        offsets = torch.tensor(self.offsets)
        return inrun_kernels.outer_dots(
            self.a, self.b, V.reshape(V.shape[0], self.b.shape[-1], self.a.shape[-1]), offsets
        )

    def dense(self, i: int) -> Tensor:
        own = slice(self.offsets[i], self.offsets[i + 1])
        return (wide(self.b[own]).T @ wide(self.a[own])).reshape(self.shape)

    def tensors(self) -> tuple[Tensor, ...]:
        return self.a, self.b

    def finite(self, n: int) -> Tensor:
        rows = torch.isfinite(self.a).all(1) & torch.isfinite(self.b).all(1)
        return _all_of_each(rows, self.offsets)


@dataclass
class PackedRows(Factor):
    """``g_n[ids_p] += b_p`` over sample n's rows, ids [p], b [p,d], sorted by sample."""

    ids: Tensor
    b: Tensor
    offsets: list[int]
    """[n + 1]: sample n has the rows offsets[n] to offsets[n + 1]"""
    shape: tuple[int, ...]

    def dots(self, V: Tensor) -> Tensor:
        table = V.reshape(V.shape[0], self.shape[0], -1)
        rows = inrun_kernels.embedding_dots(self.ids[None], self.b[None], table)[:, 0]
        parts = rows.split([b - a for a, b in pairwise(self.offsets)], 1)
        return torch.stack([part.sum(1) for part in parts], 1)

    def dense(self, i: int) -> Tensor:
        own = slice(self.offsets[i], self.offsets[i + 1])
        b = wide(self.b[own])
        table = b.new_zeros(self.shape[0], b.shape[-1])
        return table.index_add_(0, self.ids[own], b).reshape(self.shape)

    def tensors(self) -> tuple[Tensor, ...]:
        return self.ids, self.b

    def finite(self, n: int) -> Tensor:
        return _all_of_each(torch.isfinite(self.b).all(1), self.offsets)


@dataclass
class Owned(Factor):
    """The argument has the samples' axis itself: sample n's gradient is g on the rows that it owns.

    g [*shape].
    """

    g: Tensor
    axis: int
    owners: Owners

    def dots(self, V: Tensor) -> Tensor:
        products = (as_real(wide(self.g)) * as_real(V)).movedim(self.axis + 1, 0)
        rows = products.reshape(products.shape[0], V.shape[0], -1).sum(-1)
        return self.owners.sums(rows).T

    def dense(self, i: int) -> Tensor:
        own = self.owners.rows(i, self.g.device)
        g = wide(self.g)
        return torch.zeros_like(g).index_copy_(self.axis, own, g.index_select(self.axis, own))

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.g,)

    def finite(self, n: int) -> Tensor:
        rows = torch.isfinite(self.g).movedim(self.axis, 0).flatten(1).all(1)
        order, offsets = self.owners.sorted(self.g.device)
        return _all_of_each(rows[order], offsets)


@dataclass
class Grouped(Factor):
    """Any factor of rows, added up by the rows' owners."""

    factor: Factor
    owners: Owners

    def dots(self, V: Tensor) -> Tensor:
        return self.owners.sums(self.factor.dots(V).T).T

    def dense(self, i: int) -> Tensor:
        rows = self.owners.rows(i, self.factor.tensors()[0].device).tolist()
        # a sample without a row has a gradient of zeros, of the shape of any row's
        parts = [self.factor.dense(row) for row in rows] or [0 * self.factor.dense(0)]
        return torch.stack(parts).sum(0)

    def tensors(self) -> tuple[Tensor, ...]:
        return self.factor.tensors()

    def finite(self, n: int) -> Tensor:
        rows = self.factor.finite(self.owners.size)
        order, offsets = self.owners.sorted(rows.device)
        return _all_of_each(rows[order], offsets)


def _all_of_each(rows: Tensor, offsets: list[int]) -> Tensor:
    """Whether all of each sample's rows are true: [p] sorted by sample -> [n]."""
    return torch.stack([rows[a:b].all() for a, b in pairwise(offsets)])
