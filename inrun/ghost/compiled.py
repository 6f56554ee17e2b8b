"""Dots that leave the graph as gradients of zero inputs: what torch.compile can trace.

Inside a compiled region there is no Python left that could see a use or tap a gradient. But the
compiler traces this mode together with the model: each operation on a tracked parameter takes its
compiled form (`inrun.rules.compiled`), whose backward returns ``<g_n, V_k>`` as the gradient of a
probe [k, n], one probe per parameter. Autograd adds up the uses of a shared parameter. The graph
has no break, and new directions of the same shapes do not recompile it.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from inrun.ghost.tape import non_finite_samples
from inrun.rules import OPERATIONS


class CompiledProbes(TorchFunctionMode):
    """Context around forward and backward of one micro-batch, for operations with a compiled form:
    linear layers, embeddings, LayerNorm, RMSNorm and this project's fused head.

    Other uses of a parameter go by unseen here; the balance then does not close, which is an error
    that names the parameter.

    Args:
        parameters: name -> tracked parameter.
        directions: name -> V [k, *shape].
        n: samples, along axis 0.
    """

    #: what runs inside a compiled region cannot be asked for its dtype: the balance is checked to
    #: the coarsest one
    dtypes = frozenset({torch.bfloat16})

    def __init__(self, parameters: Mapping[str, Tensor], directions: Mapping[str, Tensor], n: int):
        super().__init__()
        self.n, self.directions = n, dict(directions)
        self.names = {id(p): name for name, p in parameters.items() if name in directions}
        self.probes = {
            name: V.new_zeros(V.shape[0], n, requires_grad=True)
            for name, V in self.directions.items()
        }
        self.forms = {
            operation: entry.compiled
            for operation, entry in OPERATIONS.items()
            if entry.compiled is not None
        }

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        form = self.forms.get(func)
        out = None if form is None else form(self, *args, **kwargs)
        return func(*args, **kwargs) if out is None else out

    def of(self, parameter: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """(V [k, *shape], probe [k, n]) of a parameter, None for a tensor that is not valued."""
        name = None if parameter is None else self.names.get(id(parameter))
        return None if name is None else (self.directions[name], self.probes[name])

    # -- what a recorder tells

    def dots(self, directions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """name -> <g_n, V_k> [k, n] in float64, after the backward, for the directions it was made
        with.
        """
        return {
            name: probe.grad.double()
            for name, probe in self.probes.items()
            if probe.grad is not None
        }

    @property
    def seen(self) -> set[str]:
        """Names of the parameters that the batch used."""
        return {name for name, probe in self.probes.items() if probe.grad is not None}

    def non_finite(self) -> list[bool]:
        """Which samples have NaN or infinity in a dot product."""
        return non_finite_samples(self.dots(self.directions), self.n)
