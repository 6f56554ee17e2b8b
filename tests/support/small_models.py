"""Small models and their losses, for the tests of the attributor and of the engine."""

import torch
from torch import nn

from inrun.models import build

TOKENS = 13

#: float32 against float64, by method: |error| / RMS of the values. A dot adds about 6000 products
#: of rounded factors (6e-8 each, as a random walk: 5e-6), of which the samples' cancellation over
#: tokens leaves a few; path and second order also difference and differentiate twice.
FLOAT32 = {"first_order": 2e-6, "second_order": 1e-5, "path": 1e-5}


def small(family: str, dtype=torch.float64, **overrides) -> nn.Module:
    model = build(
        family,
        "tiny",
        **{
            "block_size": TOKENS,
            "n_layer": 2,
            "n_head": 2,
            "d_model": 16,
            "vocab_size": 64,
            **overrides,
        },
    ).to(dtype)
    with torch.no_grad():  # off the initialisation, where biases are 0 and heads alike
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def rows(n: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 64, (n, TOKENS), generator=torch.Generator().manual_seed(seed))


def loss_of(model, tokens, scale: float):
    return model.loss(tokens[:, :-1], tokens[:, 1:]) * scale


class Regressor(nn.Module):
    def __init__(self, norm=None):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 8), norm, nn.Linear(8, 2)

    def forward(self, x):
        h = self.first(x).relu_()
        return self.last(h if self.norm is None else self.norm(h))


def regression(model, n=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(n, 4, generator=generator), torch.randn(n, 2, generator=generator)
    return lambda: nn.functional.mse_loss(model(x), y)
