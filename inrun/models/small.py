"""Small networks for labelled data: `features(x)` is what the last linear layer `head` sees. Plain
modules; no layer mixes samples.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class ConvNet(nn.Module):
    """Two convolutions of stride 2 with GroupNorm and a linear head, for images [n, channels, size,
    size]; images of 16 pixels and more are halved first.

    Args:
        outputs: classes.
        width: channels of the first convolution; the second has twice as many.
    """

    def __init__(self, channels: int, size: int, outputs: int, width: int = 8):
        super().__init__()
        self.halve = size >= 16
        size = size // 2 if self.halve else size
        self.first = nn.Conv2d(channels, width, 3, padding=1, stride=2)
        self.first_norm = nn.GroupNorm(min(4, width), width)
        self.second = nn.Conv2d(width, 2 * width, 3, padding=1, stride=2)
        self.second_norm = nn.GroupNorm(min(4, 2 * width), 2 * width)
        size = ((size + 1) // 2 + 1) // 2
        self.head = nn.Linear(2 * width * size * size, outputs)

    def features(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(x, 2) if self.halve else x
        x = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(x))).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class MLP(nn.Module):
    """Two hidden layers with ReLU, for rows [n, inputs] (images are flattened)."""

    def __init__(self, inputs: int, outputs: int, width: int = 32):
        super().__init__()
        self.first = nn.Linear(inputs, width)
        self.second = nn.Linear(width, width)
        self.head = nn.Linear(width, outputs)

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x.flatten(1)))))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))
