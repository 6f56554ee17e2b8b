"""The ground floor: dots of per-sample gradients with directions, in the backward.

Axes, everywhere: n train samples, m validation samples, t tokens, p packed tokens, i in, o out, v
vocab, k directions. Needs torch only; triton, where it is installed, is imported at the first call
that runs a kernel.
"""

from inrun_kernels import cost
from inrun_kernels.backend import use
from inrun_kernels.embedding_dots import embedding, embedding_dots
from inrun_kernels.ghost_hvp import ghost_hvp
from inrun_kernels.head import (
    HeadDots,
    cross_entropy_sum,
    cross_entropy_sum_composite,
    cross_entropy_sum_dots,
    cross_entropy_sum_per_sample,
    cross_entropy_sum_twice,
    linear_cross_entropy,
    linear_cross_entropy_dots,
)
from inrun_kernels.layers import layer_norm, linear, rms_norm
from inrun_kernels.norm_dots import NormDots, norm_dots
from inrun_kernels.pairwise_dots import pairwise_dots
from inrun_kernels.sum_dots import sample_dots, sample_sum
from inrun_kernels.wgrad_dots import outer_dots, wgrad_dots

__all__ = [
    "HeadDots",
    "NormDots",
    "cost",
    "cross_entropy_sum",
    "cross_entropy_sum_composite",
    "cross_entropy_sum_dots",
    "cross_entropy_sum_per_sample",
    "cross_entropy_sum_twice",
    "embedding",
    "embedding_dots",
    "ghost_hvp",
    "layer_norm",
    "linear",
    "linear_cross_entropy",
    "linear_cross_entropy_dots",
    "norm_dots",
    "outer_dots",
    "pairwise_dots",
    "rms_norm",
    "sample_dots",
    "sample_sum",
    "use",
    "wgrad_dots",
]
