"""Functions of torch that are written in Python out of others: seen operation by operation.

`torch.nn.functional.multi_head_attention_forward` and its like ask first whether somebody wants to
see them as a whole, and are their plain code afterwards. Without that question the same code runs
with the same bits, and the operations inside it are seen one by one.
"""

import functools
from collections.abc import Callable
from types import FunctionType

_ASKS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


@functools.lru_cache(256)
def opened(function: Callable) -> Callable | None:
    """The function without the question, None where it is not written in Python."""
    if not isinstance(function, FunctionType):
        return None
    if not any(name in function.__code__.co_names for name in _ASKS):
        return None
    scope = dict(function.__globals__) | dict.fromkeys(_ASKS, _nobody)
    same = FunctionType(
        function.__code__, scope, function.__name__, function.__defaults__, function.__closure__
    )
    same.__kwdefaults__ = function.__kwdefaults__
    return same


def _nobody(*tensors: object) -> bool:
    return False
