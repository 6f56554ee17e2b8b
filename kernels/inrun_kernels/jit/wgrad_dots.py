"""Triton form of inrun_kernels.wgrad_dots: dots taken where the products are.

One pass over a and b; per-sample dots come from registers. A program owns a tile [BO, BI] of the
weight and the whole samples of its split. `acc` collects the tokens of one sample in float32; at
the sample's end acc is dotted with the tile of every direction, written as one partial per (tile,
direction, sample), and added to `total`. Partials are summed over tiles in float64 in a fixed
order: no atomics, so that equal calls give equal bits. Splits own whole samples, so that dots need
no combination.

    flat    all samples of one length: one software-pipelined loop over token blocks, whose copies
            stay in flight across sample ends; with one direction its tile may stay in registers
            (RESIDENT)
    nested  any lengths, by offsets
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from inrun_kernels.jit.common import (
    Arguments,
    Constants,
    Launch,
    aligned,
    architecture,
    operand,
    precision,
    readable,
    splits_for,
)
from inrun_kernels.jit.wgrad_tiles import Config, config_for


@triton.jit
def _tile_dot(
    acc, v, o, i, stride, rows: tl.constexpr, columns: tl.constexpr, slices: tl.constexpr
):
    """<acc, v tile>, v read in column slices: one slice of it in registers at a time."""
    if slices == 1:
        r, c = tl.arange(0, rows), tl.arange(0, columns)
        inside = (r[:, None] < o) & (c[None, :] < i)
        direction = tl.load(v + r[:, None] * stride + c[None, :], mask=inside, other=0.0)
        # Beyond the edge acc holds products of whatever lies in the padding of a and b: select, do
        # not multiply by 0.
        return tl.sum(tl.where(inside, acc * direction.to(tl.float32), 0.0))
    else:
        left, right = acc.reshape(rows, 2, columns // 2).permute(0, 2, 1).split()
        dot = _tile_dot(left, v, o, i, stride, rows, columns // 2, slices // 2)
        v += columns // 2
        return dot + _tile_dot(
            right, v, o, i - columns // 2, stride, rows, columns // 2, slices // 2
        )


@triton.jit
def _product(
    acc, a, b, tokens, read_o, read_i, stride_a, stride_b,
    BT: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr,
    EVEN_T: tl.constexpr, EVEN_O: tl.constexpr, EVEN_I: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """acc [BO, BI] + b^T a over a block of at most BT tokens.

    `tokens`, read_o, read_i: what is left to read.
    """
    t, r, c = tl.arange(0, BT), tl.arange(0, BO), tl.arange(0, BI)
    at, bt = a + t[:, None] * stride_a + c[None, :], b + t[:, None] * stride_b + r[None, :]
    if EVEN_T and EVEN_I:
        inputs = tl.load(at)
    else:
        inputs = tl.load(at, mask=(t[:, None] < tokens) & (c[None, :] < read_i), other=0.0)
    if EVEN_T and EVEN_O:
        gradients = tl.load(bt)
    else:
        gradients = tl.load(bt, mask=(t[:, None] < tokens) & (r[None, :] < read_o), other=0.0)
    return tl.dot(tl.trans(operand(gradients)), operand(inputs), acc, input_precision=PRECISION)


@triton.jit
def _tile_of(program, rows, columns, GROUP: tl.constexpr):
    """(row, column) of a tile.

    Rows are taken in groups, so that programs that run together share columns of a in L2.
    """
    wide = GROUP * columns
    first = (program // wide) * GROUP
    height = tl.minimum(rows - first, GROUP)
    return first + (program % wide) % height, (program % wide) // height


@triton.jit
def _store_total(total, tile, o, i, stride, ADD: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr):
    """Write the tile at `tile`, added to what is there where ADD; o rows, i columns are left."""
    r, c = tl.arange(0, BO), tl.arange(0, BI)
    at = tile + r[:, None] * stride + c[None, :]
    inside = (r[:, None] < o) & (c[None, :] < i)
    if ADD:
        total += tl.load(at, mask=inside, other=0.0)
    tl.store(at, total, mask=inside)


@triton.jit
def _store_dots(
    acc, v_tile, part, samples, directions, o, i, row, column,
    BO: tl.constexpr, BI: tl.constexpr, SLICES: tl.constexpr,
):  # fmt: skip
    """Write a sample's dots of one tile, acc with the tile of every direction, at `part`."""
    for k in range(directions):
        v = v_tile + tl.cast(k, tl.int64) * o * i
        dot = _tile_dot(acc, v, o - row, i - column, i, BO, BI, SLICES)
        tl.store(part + k * samples, dot)


@triton.jit
def _flat_kernel(
    a, b, v, wgrad, parts, samples, t, o, i, read_o, read_i, directions, per_split,
    stride_a, stride_b,
    BO: tl.constexpr, BI: tl.constexpr, BT: tl.constexpr, GROUP: tl.constexpr,
    SLICES: tl.constexpr, RESIDENT: tl.constexpr, ADD: tl.constexpr, EVEN_T: tl.constexpr,
    EVEN_O: tl.constexpr, EVEN_I: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """a [n*t,i], b [n*t,o], v [k,o,i] -> wgrad [splits,o,i] (or to [o,i]), parts [tiles,k,n]."""
    program, split = tl.program_id(0), tl.program_id(1)
    tile_o, tile_i = _tile_of(program, tl.cdiv(o, BO), tl.cdiv(i, BI), GROUP)
    row, column = tile_o * BO, tile_i * BI
    first = split * per_split
    count = tl.minimum(samples - first, per_split)
    blocks = tl.cdiv(t, BT)
    v_tile = v + tl.cast(row, tl.int64) * i + column
    if RESIDENT:
        r, c = tl.arange(0, BO), tl.arange(0, BI)
        inside = (r[:, None] < o - row) & (c[None, :] < i - column)
        direction = tl.load(v_tile + r[:, None] * i + c[None, :], mask=inside, other=0.0)
    acc, total = tl.zeros((BO, BI), tl.float32), tl.zeros((BO, BI), tl.float32)
    for step in range(count * blocks):
        sample, block = first + step // blocks, step % blocks
        token = tl.cast(sample, tl.int64) * t + block * BT
        acc = _product(
            acc, a + token * stride_a + column, b + token * stride_b + row, t - block * BT,
            read_o - row, read_i - column, stride_a, stride_b, BT, BO, BI, EVEN_T, EVEN_O, EVEN_I,
            PRECISION,
        )  # fmt: skip
        if block == blocks - 1:
            part = parts + tl.cast(program * directions, tl.int64) * samples + sample
            if RESIDENT:
                tl.store(part, tl.sum(tl.where(inside, acc * direction.to(tl.float32), 0.0)))
            else:
                _store_dots(
                    acc, v_tile, part, samples, directions, o, i, row, column, BO, BI, SLICES
                )
            total += acc
            acc = tl.zeros((BO, BI), tl.float32)
    w_tile = wgrad + (tl.cast(split, tl.int64) * o + row) * i + column
    _store_total(total, w_tile, o - row, i - column, i, ADD, BO, BI)


@triton.jit
def _nested_kernel(
    a, b, v, wgrad, parts, offsets, samples, o, i, read_o, read_i, directions, per_split,
    stride_a, stride_b,
    BO: tl.constexpr, BI: tl.constexpr, BT: tl.constexpr, GROUP: tl.constexpr,
    SLICES: tl.constexpr, ADD: tl.constexpr, EVEN_O: tl.constexpr, EVEN_I: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """a [p, i], b [p, o], v [k,o,i], offsets [n+1] int64 -> as _flat_kernel."""
    program, split = tl.program_id(0), tl.program_id(1)
    tile_o, tile_i = _tile_of(program, tl.cdiv(o, BO), tl.cdiv(i, BI), GROUP)
    row, column = tile_o * BO, tile_i * BI
    v_tile = v + tl.cast(row, tl.int64) * i + column
    total = tl.zeros((BO, BI), tl.float32)
    for sample in range(split * per_split, tl.minimum(samples, (split + 1) * per_split)):
        start = tl.load(offsets + sample)
        length = (tl.load(offsets + sample + 1) - start).to(tl.int32)
        acc = tl.zeros((BO, BI), tl.float32)
        for token in range(0, length, BT):
            acc = _product(
                acc, a + (start + token) * stride_a + column, b + (start + token) * stride_b + row,
                length - token, read_o - row, read_i - column, stride_a, stride_b, BT, BO, BI,
                False, EVEN_O, EVEN_I, PRECISION,
            )  # fmt: skip
        part = parts + tl.cast(program * directions, tl.int64) * samples + sample
        _store_dots(acc, v_tile, part, samples, directions, o, i, row, column, BO, BI, SLICES)
        total += acc
    w_tile = wgrad + (tl.cast(split, tl.int64) * o + row) * i + column
    _store_total(total, w_tile, o - row, i - column, i, ADD, BO, BI)


def plan(
    a: Tensor,
    b: Tensor,
    V: Tensor,
    spans: list[tuple[int, int]],
    wgrad: Tensor,
    parts_of: int,
    config: Config,
    add: bool,
) -> tuple[Launch, Tensor]:
    """The launch, and the partial dots [tiles,k,n] it will fill.

    Packed a [p,i], b [p,o] of one dtype. `wgrad` is [parts_of,o,i], or [o,i] with one part, to
    which the gradient is added where `add`.
    """
    o, i, n, k = b.shape[1], a.shape[1], len(spans), V.shape[0]
    tiles = triton.cdiv(o, config.BO) * triton.cdiv(i, config.BI)
    parts = torch.empty(tiles, k, n, dtype=torch.float32, device=a.device)
    arguments: Arguments = {
        "a": a, "b": b, "v": V, "wgrad": wgrad, "parts": parts, "samples": n, "o": o, "i": i,
        "directions": k, "read_o": readable(b), "read_i": readable(a),
        "per_split": triton.cdiv(n, parts_of), "stride_a": a.stride(0), "stride_b": b.stride(0),
    }  # fmt: skip
    constants: Constants = {
        "BO": config.BO, "BI": config.BI, "BT": config.BT, "GROUP": 8, "SLICES": config.slices,
        "ADD": add, "EVEN_O": o % config.BO == 0, "EVEN_I": i % config.BI == 0,
        "PRECISION": precision(a.dtype),
    }  # fmt: skip
    lengths = {last - first for first, last in spans}
    if len(lengths) == 1:
        t = lengths.pop()
        kernel, arguments["t"] = _flat_kernel, t
        constants |= {"RESIDENT": config.resident, "EVEN_T": t % config.BT == 0}
    else:
        edges = [first for first, _ in spans] + [spans[-1][1]]
        offsets = torch.tensor(edges, dtype=torch.int64, device=a.device)
        kernel, arguments["offsets"] = _nested_kernel, offsets
    grid = tiles, parts_of
    return Launch(kernel, grid, arguments, constants, config.warps, config.stages), parts


def launch(
    a: Tensor,
    b: Tensor,
    V: Tensor,
    spans: list[tuple[int, int]],
    wgrad: Tensor | None,
    splits: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Weight gradient [o,i] (added to `wgrad` where given) and dots [k, spans].

    Spans must be adjacent.
    """
    o, i = b.shape[1], a.shape[1]
    a, b, V = aligned(a), aligned(b), V.contiguous()
    ragged = len({last - first for first, last in spans}) != 1
    config = config_for(architecture(a.device), a.dtype, o, i, V.shape[0], ragged)
    tiles = triton.cdiv(o, config.BO) * triton.cdiv(i, config.BI)
    if splits is None:
        splits = splits_for(tiles, len(spans), a.device)
    splits = triton.cdiv(len(spans), triton.cdiv(len(spans), splits))
    direct = splits == 1
    target = (
        wgrad if direct and wgrad is not None else a.new_empty((splits, o, i), dtype=torch.float32)
    )
    step, parts = plan(a, b, V, spans, target, splits, config, add=direct and wgrad is not None)
    step.run()
    dots = parts.sum(0, dtype=torch.float64).float()
    if direct:
        return (target[0] if wgrad is None else wgrad), dots
    summed = target.sum(0)
    return (summed if wgrad is None else wgrad.add_(summed)), dots
