"""The ground floor: dot products of per-sample gradients with directions, fused into the backward.

Axes, everywhere: n train samples, m validation samples, t tokens, p packed tokens, i in, o out, v vocab, k directions.
Needs torch only; triton, where it is installed, is imported at the first call that runs a kernel.
"""

from kernels.backend import use
from kernels.contract_dots import contract_dots
from kernels.embedding_dots import embedding_dots
from kernels.wgrad_dots import outer_dots, wgrad_dots

__all__ = ["contract_dots", "embedding_dots", "outer_dots", "use", "wgrad_dots"]
