"""Numbers from the device. Reading one waits until everything that was asked of the device is done,
so they are read together.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


def read_together(numbers: Mapping[str, Tensor]) -> dict[str, float]:
    """0-dim tensors by name as floats, with one wait instead of one for each."""
    if not numbers:
        return {}
    first = next(iter(numbers.values()))
    return dict(
        zip(
            numbers,
            torch.stack([x.to(first.device, torch.float64) for x in numbers.values()]).tolist(),
        )
    )
