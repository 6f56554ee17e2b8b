"""StreamingDots that leave the graph as gradients of zero inputs: what torch.compile can trace.

Inside a compiled region there is no Python left that could see a use or tap a gradient. But the
compiler traces this mode together with the model: each operation on a tracked parameter becomes the
op of `kernels` whose backward returns ``<g_n, V_k>`` as the gradient of a probe [k, n], one probe
per parameter. Autograd adds up the uses of a shared parameter. The graph has no break, and new
directions of the same shapes do not recompile it.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

import inrun_kernels
from inrun.ghost.tape import non_finite_samples
from inrun_kernels.head import CROSS_ENTROPY_SUM


class CompiledProbes(TorchFunctionMode):
    """Context around forward and backward of one micro-batch, for linear layers, embeddings,
    LayerNorm, RMSNorm and this project's fused head.

    Other uses of a parameter go by unseen here; the books then do not balance, which is an error
    that names the parameter.

    Args:
        parameters: name -> tracked parameter.
        directions: name -> V [k, *shape].
        n: samples, along axis 0.
    """

    #: what runs inside a compiled region cannot be asked for its dtype: the books are checked to
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

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.linear:
            return self._linear(*args, **kwargs)
        if func is F.embedding:
            return self._embedding(*args, **kwargs)
        if func is F.layer_norm:
            return self._layer_norm(*args, **kwargs)
        if func is F.rms_norm:
            return self._rms_norm(*args, **kwargs)
        if func is CROSS_ENTROPY_SUM:
            return self._head(*args)
        return func(*args, **kwargs)

    def _name(self, parameter: Tensor | None) -> str | None:
        return None if parameter is None else self.names.get(id(parameter))

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        name, bias_name = self._name(weight), self._name(bias)
        if name is None:
            y = F.linear(input, weight, bias)
        else:
            y = inrun_kernels.linear(input, weight, bias, self.directions[name], self.probes[name])
        return y if bias_name is None else self._shifted(y, bias_name)

    def _shifted(self, y: Tensor, name: str) -> Tensor:
        """y plus nothing: the probe's gradient is sum_t <b_nt, V_k>, the dots of an offset."""
        nothing = self.probes[name].mT @ self.directions[name]
        return y + nothing.view(self.n, *(1,) * (y.dim() - 2), y.shape[-1]).to(y.dtype)

    def _embedding(
        self, input: Tensor, weight: Tensor, padding_idx: int | None = None, *rest, **options
    ) -> Tensor:
        name = self._name(weight)
        if name is None or padding_idx is not None or input.shape[0] != self.n:
            return F.embedding(input, weight, padding_idx, *rest, **options)
        return inrun_kernels.embedding(input, weight, self.directions[name], self.probes[name])

    def _layer_norm(
        self, input: Tensor, normalized_shape, weight=None, bias=None, eps: float = 1e-5
    ) -> Tensor:
        name, bias_name = self._name(weight), self._name(bias)
        if name is None or len(normalized_shape) != 1:
            y = F.layer_norm(input, normalized_shape, weight, bias, eps)
        else:
            y = inrun_kernels.layer_norm(
                input, weight, bias, self.directions[name], self.probes[name], eps=eps
            )
        return y if bias_name is None else self._shifted(y, bias_name)

    def _rms_norm(
        self, input: Tensor, normalized_shape, weight=None, eps: float | None = None
    ) -> Tensor:
        name = self._name(weight)
        if name is None or len(normalized_shape) != 1:
            return F.rms_norm(input, normalized_shape, weight, eps)
        eps = torch.finfo(input.dtype).eps if eps is None else eps
        return inrun_kernels.rms_norm(
            input, weight, self.directions[name], self.probes[name], eps=eps
        )

    def _head(self, x: Tensor, w: Tensor, targets: Tensor, ignore_index: int) -> tuple[Tensor]:
        name = self._name(w)
        if name is None:
            return CROSS_ENTROPY_SUM(x, w, targets, ignore_index)
        ones = torch.ones_like(
            targets, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32
        )
        V, probe = self.directions[name], self.probes[name]
        return (
            inrun_kernels.linear_cross_entropy(
                x, w, targets, V, probe, weights=ones, ignore_index=ignore_index
            ),
        )

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
        return {name for name, probe in self.probes.items() if probe.grad is not None}

    def non_finite(self) -> list[bool]:
        """Which samples have NaN or infinity in a dot product."""
        return non_finite_samples(self.dots(self.directions), self.n)
