"""Compile and check every shipped kernel configuration for sm_80 and sm_90, without a GPU.

    python -m inrun_kernels.aot [TEXT]     only cases whose name contains TEXT

Prints one row per kernel and architecture; exit status 1 if one breaks a limit. Counts hold for the
Triton version printed. Nothing here measures time.
"""

import sys

from inrun_kernels.aot.cases import cases
from inrun_kernels.aot.compile import SHARED_LIMIT, compile_case
from inrun_kernels.backend import interpreted


def main() -> int:
    """Compile and print the cases that the command line asks for; 1 if any has a fault."""
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
                f"{row.shared:7} {row.products:6}  {', '.join(row.faults) or 'ok'}"
            )
    print(
        f"{faulty} configurations break a limit"
        if faulty
        else "every configuration is within its limits"
    )
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
