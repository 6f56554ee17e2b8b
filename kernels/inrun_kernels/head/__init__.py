"""The language-model head fused with its loss: one pass over tokens, and its consumers.

chunks   tokens are cut into chunks, logits, softmax, losses; whole logits are never in memory
loss     the loss of plain training, with or without its gradients
dots     per-sample gradients, and their dots with directions
twice    a loss that can be differentiated twice
"""

from inrun_kernels.head.dots import (
    HeadDots,
    cross_entropy_sum_dots,
    cross_entropy_sum_per_sample,
    linear_cross_entropy,
    linear_cross_entropy_dots,
)
from inrun_kernels.head.loss import (
    CROSS_ENTROPY_LOSS,
    CROSS_ENTROPY_SUM,
    cross_entropy_sum,
    cross_entropy_sum_composite,
)
from inrun_kernels.head.twice import cross_entropy_sum_twice

__all__ = [
    "CROSS_ENTROPY_LOSS",
    "CROSS_ENTROPY_SUM",
    "HeadDots",
    "cross_entropy_sum",
    "cross_entropy_sum_composite",
    "cross_entropy_sum_dots",
    "cross_entropy_sum_per_sample",
    "cross_entropy_sum_twice",
    "linear_cross_entropy",
    "linear_cross_entropy_dots",
]
