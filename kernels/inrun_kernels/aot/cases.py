"""Every shipped kernel configuration as a case: its name and its plan by architecture.

Each case is planned by the same code that launches it, on tensors of the meta device, so that what
is checked is what runs.
"""

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

TOKENS, SAMPLES = 1024, 16

Planner = Callable[[int], Any]
"""architecture -> inrun_kernels.jit.common.Launch, which only Triton can import"""
Case = tuple[str, Planner, bool]
"""(name, plan, whether tensor cores are expected)"""


def cases() -> Iterator[Case]:
    """Every shipped configuration."""
    for k in (1, 4):
        yield from _wgrad_half(k)
        yield from _wgrad_full(k)
    yield "wgrad_dots fp16 3072x768 k=1", _wgrad(3072, 768, 1, torch.float16), True
    yield from _ones()
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        yield from _products(name, dtype)
        yield from _streams(name, dtype)


def _wgrad_half(k: int) -> Iterator[Case]:
    """The fused dots of bfloat16 operands with k directions."""
    short = _wgrad(3072, 768, k, tokens=1000)
    yield f"wgrad_dots bf16 3072x768 k={k}", _wgrad(3072, 768, k), True
    yield f"wgrad_dots bf16 3072x768 k={k} short blocks", short, True
    yield f"wgrad_dots bf16 head 50257x768 k={k}", _wgrad(50257, 768, k, add=True), True
    yield f"wgrad_dots bf16 ragged k={k}", _wgrad(3072, 768, k, ragged=True), True
    yield f"wgrad_dots bf16 odd head 50257x770 k={k}", _wgrad(50257, 770, k, add=True), True
    yield f"wgrad_dots bf16 odd 1001x770 k={k}", _wgrad(1001, 770, k, tokens=1000), True
    yield f"wgrad_dots bf16 odd ragged k={k}", _wgrad(1001, 770, k, ragged=True), True


def _wgrad_full(k: int) -> Iterator[Case]:
    """The fused dots of float32 operands with k directions, with and without tensor cores."""
    full = torch.float32
    plain, ragged = _wgrad(3072, 768, k, full), _wgrad(3072, 768, k, full, ragged=True)
    odd_ragged = _wgrad(1001, 770, k, full, ragged=True)
    yield f"wgrad_dots fp32 3072x768 k={k}", plain, False
    yield f"wgrad_dots fp32 head 50257x768 k={k}", _wgrad(50257, 768, k, full, add=True), False
    yield f"wgrad_dots fp32 ragged k={k}", ragged, False
    yield f"wgrad_dots fp32 odd 1001x770 k={k}", _wgrad(1001, 770, k, full, tokens=1000), False
    yield f"wgrad_dots fp32 odd ragged k={k}", odd_ragged, False
    yield f"wgrad_dots tf32 3072x768 k={k}", _tf32(plain), True
    yield f"wgrad_dots tf32 ragged k={k}", _tf32(ragged), True
    yield f"wgrad_dots tf32 odd ragged k={k}", _tf32(odd_ragged), True


def _ones() -> Iterator[Case]:
    """Sizes of 1, which Triton turns into constants of the compiled code."""
    x, y, ids = _single(1, 1), _single(1, 1, 1), _single(1, dtype=torch.int64)
    for name, tensors in (
        ("contract_dots", (x, x, y)),
        ("pairwise_dots", (y, y, y, y)),
        ("sum_dots", (x, x)),
        ("embedding_dots", (ids, x, y)),
        ("norm_dots", (y, y, x, None)),
        ("cross_entropy", (x, ids, _single(1), _single(1))),
    ):
        yield f"{name} sizes of 1", _plain(name, *tensors), False
    yield "wgrad_dots sizes of 1", _wgrad(1, 1, 1, torch.float32, tokens=1, samples=1), False
    yield "wgrad_dots ragged sizes of 1", _wgrad(1, 1, 1, ragged=True), True


def _products(name: str, dtype: torch.dtype) -> Iterator[Case]:
    """The other kernels that take products."""
    rows, tensor_cores = SAMPLES * TOKENS, dtype == torch.bfloat16
    a, b = _empty(rows, 768, dtype=dtype), _empty(rows, 3072, dtype=dtype)
    layer = _plain("contract_dots", a, b, _empty(1, 3072, 768, dtype=dtype))
    logits, table = _empty(rows - 24, 50257, dtype=dtype), _empty(1, 50257, 768, dtype=dtype)
    head = _plain("contract_dots", a[:-24], logits, table)
    yield f"contract_dots {name} 3072x768", layer, tensor_cores
    yield f"contract_dots {name} head 50257x768", head, tensor_cores
    if not tensor_cores:
        narrow = _plain("contract_dots", a, logits[:, :3072], table[:, :3072])
        yield "contract_dots tf32 3072x768", _tf32(narrow), True
        yield "ghost_hvp tf32 3072x768", _tf32(_hvp(dtype)), True
    yield f"ghost_hvp {name} 3072x768", _hvp(dtype), tensor_cores
    x, y = _empty(SAMPLES, TOKENS, 768, dtype=dtype), _empty(SAMPLES, TOKENS, 3072, dtype=dtype)
    pairs = _plain("pairwise_dots", x, y, x[:2], y[:2])
    yield f"pairwise_dots {name} 3072x768", pairs, tensor_cores


def _streams(name: str, dtype: torch.dtype) -> Iterator[Case]:
    """The kernels that read and sum only."""
    full, rows = torch.float32, SAMPLES * TOKENS
    z, one = _empty(rows, 50304, dtype=dtype)[:, :50257], _empty(rows, dtype=full)
    ids = _empty(rows, dtype=torch.int64)
    yield f"cross_entropy {name} v=50257", _plain("cross_entropy", z, ids, one, one), False
    x, statistic = _empty(SAMPLES, TOKENS, 768, dtype=dtype), _empty(SAMPLES, TOKENS, dtype=full)
    yield f"norm_dots {name} LayerNorm", _plain("norm_dots", x, x, statistic, statistic), False
    yield f"norm_dots {name} RMSNorm", _plain("norm_dots", x, x, statistic, None), False
    b, V = _empty(rows, 768, dtype=dtype), _empty(1, 50257, 768, dtype=full)
    yield f"embedding_dots {name}", _plain("embedding_dots", ids, b, V), False
    g = _empty(SAMPLES, 3072 * 768, dtype=dtype)
    for k in (1, 4, 16):
        directions = _empty(k, 3072 * 768, dtype=full)
        yield f"sum_dots {name} k={k}", _plain("sum_dots", g, directions), False


def _empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A tensor without memory, its rows padded to 16 elements as the head's logits are."""
    width = -(-shape[-1] // 16) * 16
    return torch.empty(*shape[:-1], width, dtype=dtype, device="meta")[..., : shape[-1]]


def _wgrad(
    o: int,
    i: int,
    k: int,
    dtype: torch.dtype = torch.bfloat16,
    ragged: bool = False,
    tokens: int = TOKENS,
    add: bool = False,
    samples: int = SAMPLES,
) -> Planner:
    def plan(arch: int):
        from inrun_kernels.jit.wgrad_dots import plan
        from inrun_kernels.jit.wgrad_tiles import config_for

        rows = samples * tokens
        a, b = (_empty(rows, width, dtype=dtype) for width in (i, o))
        spans = (
            [(0, 7), (7, rows)]
            if ragged
            else [(s * tokens, (s + 1) * tokens) for s in range(samples)]
        )
        V = torch.empty(k, o, i, device="meta")
        wgrad = torch.empty(1, o, i, device="meta")
        return plan(a, b, V, spans, wgrad, 1, config_for(arch, dtype, o, i, k, ragged), add=add)[0]

    return plan


def _plain(module: str, *tensors: Tensor | None) -> Planner:
    def plan(arch: int):
        step = import_module(f"inrun_kernels.jit.{module}").plan(*tensors)
        return step[0] if isinstance(step, tuple) else step

    return plan


def _tf32(planned: Planner) -> Planner:
    """The same plan as it is made after torch.set_float32_matmul_precision("high")."""

    def plan(arch: int):
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            return planned(arch)
        finally:
            torch.set_float32_matmul_precision(before)

    return plan


def _single(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def _hvp(dtype: torch.dtype) -> Planner:
    a, b = (_empty(SAMPLES * TOKENS, width, dtype=dtype) for width in (768, 3072))

    def plan(arch: int):
        from inrun_kernels.jit.ghost_hvp import plan

        return plan(a, b, a, b, 1)[0]

    return plan
