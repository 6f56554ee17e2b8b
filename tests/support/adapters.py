"""Small networks with adapters and reused layers; used by tests/engine/test_any_model.py."""

import torch
import torch.nn.functional as F
from torch import nn

#: tokens of a sample, and of the vocabulary
T, VOCAB = 9, 40


class LoRA(nn.Module):
    def __init__(self, base: nn.Linear, rank: int):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a, self.b = (
            nn.Parameter(torch.randn(rank, base.in_features)),
            nn.Parameter(torch.randn(base.out_features, rank)),
        )

    def forward(self, x):
        return self.base(x) + 0.5 * (x @ self.a.T) @ self.b.T


class MergedLoRA(LoRA):
    def forward(self, x):
        return F.linear(x, self.base.weight + 0.5 * self.b @ self.a, self.base.bias)


class Reused(nn.Module):
    """One layer twice, one weight as its own transpose, gains and offsets of several shapes,
    positions of shape [t] and [1, t].
    """

    def __init__(self):
        super().__init__()
        self.emb, self.wpe = nn.Embedding(VOCAB, 8, padding_idx=0), nn.Embedding(16, 8)
        self.turn = nn.Linear(8, 8)
        self.offset, self.scale, self.gate = (
            nn.Parameter(torch.randn(T, 8)),
            nn.Parameter(torch.randn(8)),
            nn.Parameter(torch.randn(1)),
        )
        self.register = nn.Parameter(torch.randn(1, 2, 8))
        self.table = nn.Parameter(torch.randn(VOCAB, 8))
        self.norm = nn.RMSNorm(8)

    def forward(self, tokens):
        positions = torch.arange(tokens.shape[1])
        x = self.emb(tokens) + self.wpe(positions) + self.wpe(positions[None]) + self.offset
        x = torch.tanh(self.turn(self.turn(x))) * self.scale - x / (2 + self.gate**2)
        x = torch.cat([self.register.expand(len(tokens), -1, -1), x + self.table[tokens]], dim=1)
        x = self.norm(x @ self.turn.weight + torch.einsum("btd,de->bte", x, self.turn.weight))
        x = x.transpose(0, 1).transpose(0, 1) @ torch.cat(
            [self.turn.weight[:4], self.turn.weight[4:] * 2]
        )
        return x[:, 2:] @ self.emb.weight.T


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding="same", groups=4, bias=False)
        self.dilated = nn.Conv2d(
            8, 12, (3, 1), dilation=(2, 1), padding=(2, 0), padding_mode="circular"
        )
        self.norm, self.frozen = nn.GroupNorm(2, 8), nn.BatchNorm2d(12).eval()
        self.one = nn.Conv1d(12, 6, 5, stride=3)
        self.three = nn.Conv3d(1, 2, (2, 3, 2), stride=(1, 2, 1))
        self.act = nn.PReLU(8)
        self.head = nn.LazyLinear(5)

    def forward(self, x):
        x = self.act(self.norm(self.stem(x)))
        x = F.relu(x + self.grouped(x), inplace=True)
        x = self.frozen(self.dilated(x))
        y = self.one(x.flatten(2))
        z = self.three(x[:, None])
        return self.head(torch.cat([y.flatten(1), z.flatten(1)], 1))
