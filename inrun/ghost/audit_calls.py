"""Records a micro-batch as the torch functions that it called, so that it can run again.

Nothing of the computation is kept: a call is its function, the arguments that are no tensors, and
the numbers of those that are. Kept are tensors that come from outside (data, masks), as clones;
parameters stand for themselves.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from inrun.ghost.arguments import rebuilder, tensors_of
from inrun.ghost.backward import BACKWARDS
from inrun.ghost.uses import SETS_GRADIENT
from inrun.rules import OPERATIONS
from inrun.rules.registry import UNKNOWN

_GRADIENT: Any = torch.Tensor.grad
#: what acts on the user's own objects, and is not done again
_NOT_AGAIN = {SETS_GRADIENT, _GRADIENT.__delete__, torch.Tensor.register_hook}

#: grad mode, and for each kind of device whether autocast is on and its dtype
Mode = tuple[bool, tuple[tuple[str, bool, torch.dtype], ...], bool]


def present_mode() -> Mode:
    """Grad mode and autocast as they are now."""
    kinds = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    casts = tuple(
        (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds
    )
    return torch.is_grad_enabled(), casts, torch.is_autocast_cache_enabled()


@dataclass
class RecordedCall:
    """One call of a torch function; tensors have numbers."""

    function: Callable
    rebuild: Callable[[list], tuple[tuple, dict]]
    """(args, kwargs) with tensors in their places"""
    arguments: tuple[int, ...]
    results: tuple[int, ...]
    mode: Mode

    @property
    def is_backward(self) -> bool:
        return self.function in BACKWARDS

    @property
    def name(self) -> str:
        return getattr(self.function, "__name__", str(self.function))


@dataclass
class RecordedTensor:
    """What is known of a numbered tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool = False
    outside: Tensor | None = None
    "a clone, where no recorded call made it; a parameter itself"
    parameter: str | None = None
    "name of the tracked parameter that it is"
    constant: bool = False
    "it has no data of the batch: a buffer, a frozen parameter"
    written: bool = False
    "a call changed it in place"
    maker: int | None = None
    "number of the call that made it"

    @property
    def discrete(self) -> bool:
        return not (self.dtype.is_floating_point or self.dtype.is_complex)


@dataclass
class Recording:
    """The calls of a micro-batch, in order, and their tensors by number."""

    calls: list[RecordedCall] = field(default_factory=list)
    tensors: list[RecordedTensor] = field(default_factory=list)
    generators: dict[torch.Generator, Tensor] = field(default_factory=dict)
    "random generators that calls were given, with their states before the first of these"
    cut: bool = False
    "some gradient flows through code that was not seen (a custom autograd.Function)"

    def end(self) -> None:
        """Forget what came after the last backward (clipping, averaging)."""
        while self.calls and not self.calls[-1].is_backward:
            self.calls.pop()

    @property
    def used_parameters(self) -> list[str]:
        """Names of the tracked parameters that calls were given where gradients are taken."""
        given = {a for call in self.calls if call.mode[0] for a in call.arguments}
        names = ((number, about.parameter) for number, about in enumerate(self.tensors))
        return [name for number, name in names if name is not None and number in given]

    @property
    def is_whole(self) -> bool:
        """Forward and backward are both there: a loss was made by calls that were seen."""
        losses = (a for call in self.calls if call.is_backward for a in call.arguments)
        return any(self.tensors[a].maker is not None for a in losses)


class CallRecorder(TorchFunctionMode):
    """Context around forward and backward of one micro-batch, entered after all other modes.

    Args:
        parameters: name -> tracked parameter.
        constants: the model's buffers and other parameters.
    """

    def __init__(self, parameters: Mapping[str, Tensor], constants: Iterable[Tensor]):
        super().__init__()
        self.recording = Recording()
        self._numbers = WeakIdKeyDictionary()
        self._alive: list[Tensor] = []  # parameters, so that their ids stay theirs
        for name, p in parameters.items():
            self._number(p, outside=p, parameter=name)
        for tensor in constants:
            kept = tensor if isinstance(tensor, nn.Parameter) else None
            self._number(tensor, outside=kept, constant=True)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.__iter__:  # its result tells nothing of the rows
            return iter(self.__torch_function__(torch.Tensor.unbind, types, args))
        if func in _NOT_AGAIN or _transformed():
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunction():  # what happens here is for no other mode to see
            leaves = tensors_of(args, kwargs)
            numbers = tuple(map(self._of, leaves))
            versions = [_version(leaf) for leaf in leaves]
            self._note_generators(args, kwargs)
            # before the call, which may overwrite its arguments
            call = RecordedCall(func, rebuilder(args, kwargs), numbers, (), present_mode())
        out = func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            written = [n for n, leaf, v in zip(numbers, leaves, versions) if _version(leaf) != v]
            for number in written:
                self.recording.tensors[number].written = True
            self._keep(call, tensors_of((out,), {}), bool(written))
        return out

    def _keep(self, call: RecordedCall, made: list[Tensor], writes: bool) -> None:
        """Note a call, if it must run again."""
        entry = OPERATIONS.get(call.function, UNKNOWN)
        drawn = not call.arguments and not entry.without_samples
        if call.function is _GRADIENT.__get__:
            for tensor in made:  # what is read before a backward is not what it holds afterwards
                self._number(tensor, outside=tensor)
        elif drawn:
            for tensor in made:  # not to be made again: drawn, or read from somewhere
                self._of(tensor)
        elif made or writes or call.is_backward:
            at = len(self.recording.calls)
            call.results = tuple(self._result(tensor, at) for tensor in made)
            self.recording.calls.append(call)

    def _result(self, tensor: Tensor, at: int) -> int:
        """Number of what a call returned; one of its arguments keeps its own."""
        known = self._numbers.get(tensor)
        return self._number(tensor, maker=at) if known is None else known

    def _of(self, tensor: Tensor) -> int:
        """Number of an argument; what nobody made comes from outside."""
        known = self._numbers.get(tensor)
        if known is not None:
            about = self.recording.tensors[known]
            if about.outside is None and about.maker is None:  # a buffer, met for the first time
                about.outside = _copy(tensor)
            # made where no gradient was taken, and now it has one: a custom Function's output
            if about.maker is not None and not about.requires_grad and tensor.requires_grad:
                self.recording.cut = self.recording.cut or tensor.grad_fn is not None
            return known
        if tensor.grad_fn is not None:
            alias = self._alias(tensor)
            if alias is not None:
                self._numbers[tensor] = alias
                return alias
            self.recording.cut = True
        return self._number(tensor, outside=_copy(tensor))

    def _alias(self, tensor: Tensor) -> int | None:
        """Number of a known tensor whose very numbers this one shows (identities in custom
        Functions: hooks of modules, of DistributedDataParallel).
        """
        place = _place(tensor)
        for other, number in self._numbers.items():
            if _place(other) == place and other.dtype == tensor.dtype:
                return number
        return None

    def _number(self, tensor: Tensor, **about: Any) -> int:
        number = len(self.recording.tensors)
        self.recording.tensors.append(
            RecordedTensor(
                tuple(tensor.shape), tensor.dtype, tensor.device, tensor.requires_grad, **about
            )
        )
        self._numbers[tensor] = number
        return number

    def _note_generators(self, args: tuple, kwargs: dict) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, torch.Generator) and value not in self.recording.generators:
                self.recording.generators[value] = value.get_state()


def _transformed() -> bool:
    """Whether torch.func.vmap, or its like, is at work: its tensors cannot be kept.

    What it gives is taken as from outside; where it has a gradient, as code that is not seen.
    """
    return torch._C._functorch.peek_interpreter_stack() is not None


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def _place(tensor: Tensor) -> tuple | None:
    if tensor.layout is not torch.strided:
        return None
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()
