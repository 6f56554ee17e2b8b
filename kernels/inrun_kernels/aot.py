"""Compile every shipped kernel configuration for sm_80 and sm_90, without a GPU, and check what
came out.

    python -m inrun_kernels.aot [TEXT]     only cases whose name contains TEXT; prints one row per kernel and architecture; exit status 1 if one breaks a limit

Each case is planned by the same code that launches it, on tensors of the meta device, so that what
is checked is what runs. Checked: no spill instruction (STL, LDL), registers and shared memory
within the architecture's limits, tensor-core instructions where the kernel has products of a dtype
that has them. Counts are a property of the compiler: they hold for the Triton version printed.
Nothing here measures time.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from inrun_kernels.backend import interpreted

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}
REGISTERS_PER_THREAD, REGISTERS_PER_BLOCK = 255, 65536
TENSOR_CORES = {80: "HMMA", 90: "HGMMA"}
POINTERS = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
TOKENS, SAMPLES = 1024, 16


@dataclass(frozen=True)
class Row:
    """What a case compiled to: registers a thread, spill instructions, bytes of shared memory,
    tensor-core products.
    """

    case: str
    arch: int
    warps: int
    registers: int
    spills: int
    shared: int
    products: int
    faults: tuple[str, ...]


def _empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A tensor without memory, its rows padded to 16 elements as the head's logits are."""
    width = -(-shape[-1] // 16) * 16
    return torch.empty(*shape[:-1], width, dtype=dtype, device="meta")[..., : shape[-1]]


def _wgrad(
    o: int,
    i: int,
    k: int,
    dtype=torch.bfloat16,
    ragged=False,
    tokens=TOKENS,
    add=False,
    samples=SAMPLES,
) -> Callable:
    def plan(arch: int):
        from inrun_kernels.jit.wgrad_dots import config_for, plan

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


def _plain(module: str, *tensors: Tensor | None) -> Callable:
    def plan(arch: int):
        from importlib import import_module

        step = import_module(f"inrun_kernels.jit.{module}").plan(*tensors)
        return step[0] if isinstance(step, tuple) else step

    return plan


def _tf32(planned: Callable) -> Callable:
    """The same plan as it is made after torch.set_float32_matmul_precision("high")."""

    def plan(arch: int):
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            return planned(arch)
        finally:
            torch.set_float32_matmul_precision(before)

    return plan


def _ones() -> Iterator[tuple[str, Callable, bool]]:
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


def _single(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def _hvp(dtype: torch.dtype) -> Callable:
    a, b = (_empty(SAMPLES * TOKENS, width, dtype=dtype) for width in (768, 3072))

    def plan(arch: int):
        from inrun_kernels.jit.ghost_hvp import plan

        return plan(a, b, a, b, 1)[0]

    return plan


def cases() -> Iterator[tuple[str, Callable, bool]]:
    """(name, plan by architecture, whether tensor cores are expected) of every shipped
    configuration.
    """
    half, full, ids = torch.bfloat16, torch.float32, torch.int64
    for k in (1, 4):
        yield f"wgrad_dots bf16 3072x768 k={k}", _wgrad(3072, 768, k), True
        yield (
            f"wgrad_dots bf16 3072x768 k={k} short blocks",
            _wgrad(3072, 768, k, tokens=1000),
            True,
        )
        yield f"wgrad_dots bf16 head 50257x768 k={k}", _wgrad(50257, 768, k, add=True), True
        yield f"wgrad_dots bf16 ragged k={k}", _wgrad(3072, 768, k, ragged=True), True
        yield f"wgrad_dots bf16 odd head 50257x770 k={k}", _wgrad(50257, 770, k, add=True), True
        yield f"wgrad_dots bf16 odd 1001x770 k={k}", _wgrad(1001, 770, k, tokens=1000), True
        yield f"wgrad_dots bf16 odd ragged k={k}", _wgrad(1001, 770, k, ragged=True), True
        yield f"wgrad_dots fp32 3072x768 k={k}", _wgrad(3072, 768, k, full), False
        yield f"wgrad_dots fp32 head 50257x768 k={k}", _wgrad(50257, 768, k, full, add=True), False
        yield f"wgrad_dots fp32 ragged k={k}", _wgrad(3072, 768, k, full, ragged=True), False
        yield f"wgrad_dots fp32 odd 1001x770 k={k}", _wgrad(1001, 770, k, full, tokens=1000), False
        yield f"wgrad_dots fp32 odd ragged k={k}", _wgrad(1001, 770, k, full, ragged=True), False
        yield f"wgrad_dots tf32 3072x768 k={k}", _tf32(_wgrad(3072, 768, k, full)), True
        yield f"wgrad_dots tf32 ragged k={k}", _tf32(_wgrad(3072, 768, k, full, ragged=True)), True
        yield (
            f"wgrad_dots tf32 odd ragged k={k}",
            _tf32(_wgrad(1001, 770, k, full, ragged=True)),
            True,
        )
    yield "wgrad_dots fp16 3072x768 k=1", _wgrad(3072, 768, 1, torch.float16), True
    yield from _ones()
    rows = SAMPLES * TOKENS
    for name, dtype in (("bf16", half), ("fp32", full)):
        tensor_cores = dtype == half
        a, b, V = (
            _empty(rows, 768, dtype=dtype),
            _empty(rows, 3072, dtype=dtype),
            _empty(1, 3072, 768, dtype=dtype),
        )
        yield f"contract_dots {name} 3072x768", _plain("contract_dots", a, b, V), tensor_cores
        b, V = _empty(rows - 24, 50257, dtype=dtype), _empty(1, 50257, 768, dtype=dtype)
        yield (
            f"contract_dots {name} head 50257x768",
            _plain("contract_dots", a[:-24], b, V),
            tensor_cores,
        )
        if not tensor_cores:
            yield (
                "contract_dots tf32 3072x768",
                _tf32(_plain("contract_dots", a, b[:, :3072], V[:, :3072])),
                True,
            )
            yield "ghost_hvp tf32 3072x768", _tf32(_hvp(dtype)), True
        yield f"ghost_hvp {name} 3072x768", _hvp(dtype), tensor_cores
        x, y = _empty(SAMPLES, TOKENS, 768, dtype=dtype), _empty(SAMPLES, TOKENS, 3072, dtype=dtype)
        yield (
            f"pairwise_dots {name} 3072x768",
            _plain("pairwise_dots", x, y, x[:2], y[:2]),
            tensor_cores,
        )
        z, one = _empty(rows, 50304, dtype=dtype)[:, :50257], _empty(rows, dtype=full)
        yield (
            f"cross_entropy {name} v=50257",
            _plain("cross_entropy", z, _empty(rows, dtype=ids), one, one),
            False,
        )
        statistic = _empty(SAMPLES, TOKENS, dtype=full)
        yield f"norm_dots {name} LayerNorm", _plain("norm_dots", x, x, statistic, statistic), False
        yield f"norm_dots {name} RMSNorm", _plain("norm_dots", x, x, statistic, None), False
        V = _empty(1, 50257, 768, dtype=full)
        yield (
            f"embedding_dots {name}",
            _plain("embedding_dots", _empty(rows, dtype=ids), a, V),
            False,
        )
        g = _empty(SAMPLES, 3072 * 768, dtype=dtype)
        for k in (1, 4, 16):
            yield (
                f"sum_dots {name} k={k}",
                _plain("sum_dots", g, _empty(k, 3072 * 768, dtype=full)),
                False,
            )


def compile_case(case: str, plan: Callable, tensor_cores: bool, arch: int) -> Row:
    """Compile one case for one architecture and read its cubin."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    step = plan(arch)
    signature, constants, attributes = {}, dict(step.constants), {}
    for position, name in enumerate(step.kernel.arg_names):
        value = step.arguments.get(name)
        if name in constants:
            signature[name] = "constexpr"
        elif isinstance(value, Tensor):
            signature[name] = POINTERS[value.dtype]
            attributes[(position,)] = [["tt.divisibility", 16]]
        elif value == 1:
            signature[name], constants[name] = "constexpr", 1
        else:
            signature[name] = "i32"
            if value % 16 == 0:
                attributes[(position,)] = [["tt.divisibility", 16]]
    compiled = triton.compile(
        ASTSource(step.kernel, signature, constants, attributes),
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": step.warps, "num_stages": step.stages},
    )
    usage, sass = _disassemble(compiled.asm["cubin"], Path(triton.__file__).parent)
    registers = int(re.search(r"REG:(\d+)", usage)[1])
    spills = len(re.findall(r"\b(?:STL|LDL)\b", sass))
    products = len(re.findall(rf"\b{TENSOR_CORES[arch]}\b", sass))
    shared = compiled.metadata.shared
    faults = []
    if spills:
        faults.append("spills")
    if registers > REGISTERS_PER_THREAD or registers * step.warps * 32 > REGISTERS_PER_BLOCK:
        faults.append("registers")
    if shared > SHARED_LIMIT[arch]:
        faults.append("shared memory")
    if tensor_cores and not products:
        faults.append("no tensor cores")
    return Row(case, arch, step.warps, registers, spills, shared, products, tuple(faults))


def _disassemble(cubin: bytes, triton_root: Path) -> tuple[str, str]:
    """(resource usage, SASS) of a cubin, by the tools that come with Triton."""
    tool = triton_root / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        read = [
            subprocess.run(
                [tool, option, file.name], capture_output=True, text=True, check=True
            ).stdout
            for option in ("-res-usage", "-sass")
        ]
    return read[0], read[1]


def main() -> int:
    """Compile and print every case, or those whose name contains the argument; 1 if any has a
    fault.
    """
    if interpreted():
        print(
            "inrun_kernels.aot compiles, the interpreter does not: run it without TRITON_INTERPRET",
            file=sys.stderr,
        )
        return 2
    import triton

    print(f"Triton {triton.__version__}; compiled without a GPU, nothing here is a time")
    print(
        f"{'case':44} {'arch':>5} {'warps':>5} {'regs':>4} {'spills':>6} {'shared':>7} "
        f"{'tensor':>6}  result"
    )
    wanted = " ".join(sys.argv[1:])
    chosen = [case for case in cases() if wanted in case[0]]
    if not chosen:
        print(f"no case's name contains {wanted!r}", file=sys.stderr)
        return 2
    faulty = 0
    for name, plan, tensor_cores in chosen:
        for arch in SHARED_LIMIT:
            row = compile_case(name, plan, tensor_cores, arch)
            faulty += bool(row.faults)
            print(
                f"{row.case:44} sm_{row.arch} {row.warps:5} {row.registers:4} {row.spills:6} "
                f"{row.shared:7} "
                f"{row.products:6}  {', '.join(row.faults) or 'ok'}"
            )
    print(
        f"{faulty} configurations break a limit"
        if faulty
        else "every configuration is within its limits"
    )
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
