"""Compile a planned kernel for an architecture, and read what came out of its cubin.

Checked: no spill instruction (STL, LDL), registers and shared memory within the architecture's
limits, tensor-core instructions where the kernel has products of a dtype that has them. Counts are
a property of the compiler: they hold for one version of Triton.
"""

import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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


@dataclass(frozen=True)
class Row:
    """What a case compiled to."""

    case: str
    """The case's name."""
    arch: int
    """The architecture, as in sm_80."""
    warps: int
    """Warps of a program."""
    registers: int
    """Registers of a thread."""
    spills: int
    """Spill instructions."""
    shared: int
    """Bytes of shared memory."""
    products: int
    """Tensor-core instructions."""
    faults: tuple[str, ...]
    """The limits that are broken."""


def compile_case(case: str, plan: Callable[[int], Any], tensor_cores: bool, arch: int) -> Row:
    """Compile one case for one architecture and read its cubin."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    step = plan(arch)
    compiled = triton.compile(
        ASTSource(step.kernel, *_specialisation(step)),
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": step.warps, "num_stages": step.stages},
    )
    usage, sass = _disassemble(compiled.asm["cubin"], Path(triton.__file__).parent)
    registers = int(usage.partition("REG:")[2].split()[0])
    spills = len(re.findall(r"\b(?:STL|LDL)\b", sass))
    products = len(re.findall(rf"\b{TENSOR_CORES[arch]}\b", sass))
    shared = compiled.metadata.shared
    broken = {
        "spills": spills > 0,
        "registers": registers > REGISTERS_PER_THREAD
        or registers * step.warps * 32 > REGISTERS_PER_BLOCK,
        "shared memory": shared > SHARED_LIMIT[arch],
        "no tensor cores": tensor_cores and not products,
    }
    faults = tuple(name for name, is_broken in broken.items() if is_broken)
    return Row(case, arch, step.warps, registers, spills, shared, products, faults)


def _specialisation(step: Any) -> tuple[dict, dict, dict]:
    """(signature, constants, attributes) as Triton derives them from a launch's arguments."""
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
    return signature, constants, attributes


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
