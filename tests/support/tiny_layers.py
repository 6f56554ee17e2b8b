"""A model of one layer of each kind, for tests/kernels/test_layers.py and test_registration.py."""

import torch
import torch.nn.functional as F

import inrun_kernels
from tests.support.kernel_oracles import error

N, T, D, O, VOCAB, ROWS, K = 3, 6, 5, 11, 17, 9, 2
LENGTH = T + VOCAB * O


class Tiny:
    """Embedding, linear, LayerNorm, RMSNorm and a head, fused and in plain PyTorch."""

    def __init__(self, dtype: torch.dtype):
        shapes = {
            "table": (ROWS, D),
            "w": (O, D),
            "b": (O,),
            "lw": (O,),
            "lb": (O,),
            "rw": (O,),
            "head": (VOCAB, O),
        }
        self.p = {
            name: torch.randn(shape, dtype=dtype, requires_grad=True)
            for name, shape in shapes.items()
        }
        self.V = {name: torch.randn((K, *shape), dtype=dtype) for name, shape in shapes.items()}
        self.ids = torch.randint(0, ROWS, (N, T))
        self.targets = torch.randint(0, VOCAB, (N, T))
        self.targets[0, 1] = -100
        self.probe = torch.zeros(K, N, dtype=dtype, requires_grad=True)

    def fused(self, probe: torch.Tensor, wrap=None) -> torch.Tensor:
        p, V = self.p, self.V
        x = inrun_kernels.embedding(self.ids, p["table"], V["table"], probe)

        def block(x):
            x = inrun_kernels.linear(x, p["w"], p["b"], V["w"], probe, bias_V=V["b"])
            x = inrun_kernels.layer_norm(x, p["lw"], p["lb"], V["lw"], probe, bias_V=V["lb"])
            return inrun_kernels.rms_norm(x, p["rw"], V["rw"], probe)

        x = block(x) if wrap is None else wrap(block, x)
        return inrun_kernels.linear_cross_entropy(x, p["head"], self.targets, V["head"], probe)

    def plain(self, samples: slice) -> torch.Tensor:
        p = {name: w.double() for name, w in self.p.items()}
        x = F.linear(F.embedding(self.ids[samples], p["table"]), p["w"], p["b"])
        x = F.rms_norm(F.layer_norm(x, (O,), p["lw"], p["lb"]), (O,), p["rw"], 1e-6)
        z = F.linear(x, p["head"]).flatten(0, 1)
        return F.cross_entropy(
            z, self.targets[samples].flatten(), ignore_index=-100, reduction="sum"
        ) / (N * T - 1)

    def gradients(self, loss: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(loss, [*self.p.values(), self.probe]))

    def expected(self) -> list[torch.Tensor]:
        """Gradients of all parameters, and dots [k,n], in float64, one sample at a time."""
        totals = [torch.zeros_like(w, dtype=torch.float64) for w in self.p.values()]
        dots = torch.zeros(K, N, dtype=torch.float64)
        for n in range(N):
            gradients = torch.autograd.grad(self.plain(slice(n, n + 1)), list(self.p.values()))
            for total, g, direction in zip(totals, gradients, self.V.values()):
                total += g
                dots[:, n] += (g.double() * direction.double()).flatten(1).sum(1)
        return [*totals, dots]


def close(actual, expected, allowed: float) -> None:
    """Assert that tensors agree one by one, in relative RMS error."""
    for a, e in zip(actual, expected, strict=True):
        assert error(a, e.double()) < allowed
