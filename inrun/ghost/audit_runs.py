"""Runs a recorded micro-batch again, with the data of some samples changed."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from inrun.ghost.arguments import tensors_of
from inrun.ghost.audit_calls import Mode, RecordedCall, Recording
from inrun.ghost.audit_data import BatchData, changed_ids, changed_numbers


class CannotRunAgain(RuntimeError):
    """A recorded call failed when it was made again."""


class Again:
    """A recorded micro-batch, to be run again and again.

    The first run is as it was. It keeps the discrete results of what was computed from data
    (routing, masks, ranks); all later ones take these, so that shapes stay, and derivatives are at
    the decisions that were made.

    Args:
        recording: the calls.
        parameters: name -> what stands for the parameter.
    """

    def __init__(self, recording: Recording, parameters: Mapping[str, Tensor]):
        self.recording, self.parameters = recording, parameters
        self.decided: dict[tuple[int, int], Tensor] = {}
        self._last_use: dict[int, int] = {}
        for at, call in enumerate(recording.calls):
            for number in call.arguments:
                self._last_use[number] = at

    @property
    def used(self) -> set[int]:
        """Numbers of the tensors that calls take."""
        return set(self._last_use)

    def start(self, data: BatchData, samples: Tensor | None = None) -> "Run":
        """A run with the data of some samples (bool [n]) changed; None: as it was."""
        return Run(self, data, samples)

    def is_last_use(self, number: int, at: int) -> bool:
        """Whether no call after number `at` takes a tensor."""
        return self._last_use.get(number, -1) <= at


class Run:
    """One run: call it once.

    Attributes:
        constants: the tensors without data of the samples, as this run holds them.
    """

    def __init__(self, again: Again, data: BatchData, samples: Tensor | None):
        self.again, self.data, self.samples = again, data, samples
        self._tensors: dict[int, Tensor] = {}
        self._carriers: dict[int, Tensor] = {}
        self.constants: list[Tensor] = []
        for number in sorted(again.used):
            about = again.recording.tensors[number]
            if about.outside is None:
                continue
            if about.parameter is not None:
                self._tensors[number] = again.parameters[about.parameter]
            elif isinstance(about.outside, torch.nn.Parameter):
                self._tensors[number] = about.outside
            else:
                self._enter(number, about.outside.detach().clone())
                self._tensors[number].requires_grad_(about.requires_grad)
            if about.constant:
                self.constants.append(self._tensors[number])

    def __call__(self, with_backward: bool = True) -> Tensor | None:
        """All calls, in order; the sum of the losses that are backpropagated.

        with_backward: do so.

        Raises:
            CannotRunAgain
        """
        losses: list[Tensor] = []
        for generator, state in self.again.recording.generators.items():
            generator.set_state(state)
        with _Modes() as modes:
            for at, call in enumerate(self.again.recording.calls):
                modes.be(call.mode)
                if call.is_backward and not with_backward:
                    losses += [self._tensors[number].sum() for number in call.arguments[:1]]
                else:
                    self._call(at, call)
                for number in {*call.arguments, *call.results}:
                    if self.again.is_last_use(number, at):
                        self._tensors.pop(number, None)
        return sum(losses[1:], start=losses[0]) if losses else None

    def _call(self, at: int, call: RecordedCall) -> None:
        changes, carries = self.samples is not None, at in self.data.lookups
        decided = [(at, k) in self.again.decided for k in range(len(call.results))]
        if changes and call.results and all(decided):
            made = [self.again.decided[at, k].clone() for k in range(len(decided))]
            for number, tensor in zip(call.results, made):
                self._enter(number, tensor)
            if not (changes and carries):
                return
        if changes and carries and not call.results:  # it writes in place: into what stays as well
            self._make(call, on_the_way=False)
        out = self._make(call, on_the_way=changes and carries)
        with torch._C.DisableTorchFunction(), torch.no_grad():
            self._take(at, call, tensors_of((out,), {}), changes)

    def _make(self, call: RecordedCall, on_the_way: bool) -> Any:
        """What the call gives; on the way of changed ids: of these."""
        args, kwargs = call.rebuild([self._value(number, on_the_way) for number in call.arguments])
        try:
            return call.function(*args, **kwargs)
        except Exception as error:
            raise CannotRunAgain(f"{call.name}: {error}") from error

    def _take(self, at: int, call: RecordedCall, made: list[Tensor], changes: bool) -> None:
        """Put the results of a call in their places."""
        tensors, data = self.again.recording.tensors, self.data
        if len(made) != len(call.results):
            raise CannotRunAgain(f"{call.name}: it gave {len(made)} tensors")
        for k, (number, tensor) in enumerate(zip(call.results, made)):
            if tensors[number].discrete and number not in data.free | data.loose:
                if not changes:
                    self.again.decided[at, k] = tensor.clone()
                elif number in data.carriers and at in data.lookups:
                    self._carriers[number] = tensor
                    continue
                else:
                    tensor = self.again.decided[at, k].clone()
            self._enter(number, tensor)

    def _value(self, number: int, on_the_way: bool) -> Tensor:
        if on_the_way and number in self._carriers:
            return self._carriers[number]
        return self._tensors[number]

    def _enter(self, number: int, tensor: Tensor) -> None:
        """Take a tensor, changed if it is an entry of data."""
        if self.samples is not None and number in self.data.floats:
            tensor = changed_numbers(tensor, self.data.owners, self.samples, number)
        self._tensors[number] = tensor
        if self.samples is not None and number in self.data.ids:
            self._carriers[number] = changed_ids(
                tensor, self.data.owners, self.samples, self.data.all_of_it
            )


class _Modes:
    """Keeps grad mode and autocast as the recorded calls had them."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._mode: Mode | None = None

    def be(self, mode: Mode) -> None:
        """Make this the present mode."""
        if mode == self._mode:
            return
        self._stack.close()
        self._mode = mode
        grad, casts, cache = mode
        self._stack.enter_context(torch.set_grad_enabled(grad))
        for kind, enabled, dtype in casts:
            if (enabled, dtype) != (
                torch.is_autocast_enabled(kind),
                torch.get_autocast_dtype(kind),
            ):
                self._stack.enter_context(torch.autocast(kind, dtype, enabled, cache_enabled=cache))

    def __enter__(self) -> "_Modes":
        return self

    def __exit__(self, *exception) -> None:
        self._stack.close()
