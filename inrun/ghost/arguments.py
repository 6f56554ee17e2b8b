"""The tensors among an operation's arguments, wherever they stand."""

from collections.abc import Callable

import torch
from torch import Tensor

_GETTERS = "shape dtype device layout ndim requires_grad is_leaf is_cuda is_cpu is_nested is_sparse"
_METHODS = (
    "size dim stride numel nelement is_contiguous is_floating_point is_complex element_size "
    "data_ptr get_device __len__"
)
#: what tells of a tensor and hands none out: a third of a model's torch functions
TELLS = {getattr(torch.Tensor, name).__get__ for name in _GETTERS.split()}
TELLS |= {getattr(torch.Tensor, name) for name in _METHODS.split()}


def tensors_of(args: tuple, kwargs: dict) -> list[Tensor]:
    """All tensors in args and kwargs, depth first, through lists, tuples and dicts."""
    found: list[Tensor] = []
    _collect(args, found)
    if kwargs:
        _collect(kwargs, found)
    return found


def _collect(value, found: list) -> None:
    if isinstance(value, Tensor):
        found.append(value)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _collect(item, found)
    elif isinstance(value, dict):
        for item in value.values():
            _collect(item, found)


def rebuilder(args: tuple, kwargs: dict) -> Callable:
    """``rebuild(leaves) -> (args, kwargs)`` with the tensors replaced, in the order of
    `tensors_of`. Keeps no tensor alive.
    """
    skeleton = _skeleton((args, kwargs))

    def rebuild(leaves):
        return _fill(skeleton, iter(leaves))

    return rebuild


class _Hole:
    """Where a tensor stood."""


_HOLE = _Hole()


def _skeleton(value):
    if isinstance(value, Tensor):
        return _HOLE
    if isinstance(value, dict):
        return {key: _skeleton(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_skeleton(item) for item in value))
    if type(value) in (list, tuple):
        return type(value)(_skeleton(item) for item in value)
    return value


def _fill(value, leaves):
    if value is _HOLE:
        return next(leaves)
    if isinstance(value, dict):
        return {key: _fill(item, leaves) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_fill(item, leaves) for item in value))
    if type(value) in (list, tuple):
        return type(value)(_fill(item, leaves) for item in value)
    return value
