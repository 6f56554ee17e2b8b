"""The balance: what the samples contributed adds up, parameter by parameter, to the gradient
that the optimizer gets.

Clipping, loss scaling and averaging multiply every g_i by one factor c. It is measured, as the
ratio of the gradient's norm at the step to its norm after the last backward, and must be the same
for every parameter. Then ``c sum_i <g_i, V> = <.grad, V>`` is checked for each of them: a use of a
parameter that was not seen, a gradient from outside the batch, or noise added to it, is an error
that names the parameter.
"""

import math
from collections.abc import Callable, Mapping
from typing import NoReturn

import torch
from torch import Tensor


class BalanceError(RuntimeError):
    """The samples' parts do not add up to the gradient of a parameter."""


class UnseenParameterError(BalanceError):
    """A parameter got a gradient, but no use of it was seen."""


class NonFiniteError(RuntimeError):
    """NaN or infinity in a sample's gradient."""


#: Largest difference between both sides, relative to ``sum_i |c <g_i, V>| + |G| |V| /
#: sqrt(numel)``. Rounding: the two sides add the same products in another order, and the sums
#: cancel over tokens by up to two orders of magnitude, so about 100 sqrt(terms) machine epsilons;
#: under bf16 autocast the weight gradient is rounded to bf16 (2^-9) before it is added up. An
#: unseen use or a foreign gradient is of order one.
BALANCE_TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 2e-3,
    torch.bfloat16: 0.1,
    torch.float16: 0.1,
}

#: Largest relative difference between the factors c of two parameters: rounding of one
#: multiplication per element, and of the norm.
FACTOR_TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.bfloat16: 2e-2,
    torch.float16: 2e-2,
}


def gradient_norms(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Euclidean norm of each gradient, as 0-dim float64 tensors, not waited for
    (`inrun_kernels.backend`).

    Row by row first: over a million elements in one sum, fp32 on a CPU is off by 1e-4, which is as
    much as the factors may differ.
    """
    return {name: _norm(real(g)) for name, g in gradients.items()}


def real(x: Tensor) -> Tensor:
    """The tensor, or that of a complex one's real and imaginary parts."""
    return torch.view_as_real(x) if x.is_complex() else x


def _norm(g: Tensor) -> Tensor:
    wide = torch.promote_types(g.dtype, torch.float32)
    rows = g if g.ndim < 2 else torch.linalg.vector_norm(g.flatten(1), dim=1, dtype=wide)
    return torch.linalg.vector_norm(rows, dtype=torch.float64)


def common_factor(
    before: Mapping[str, float], now: Mapping[str, float], dtypes: Mapping[str, torch.dtype]
) -> float:
    """c, from the norms of the gradients after the last backward and at the step.

    Raises:
        BalanceError: the parameters do not agree.
    """
    ratios = {name: now[name] / before[name] for name in before if name in now and before[name] > 0}
    if not ratios:
        return 1.0
    ordered = sorted(ratios.values())
    c = ordered[len(ordered) // 2]
    for name, ratio in ratios.items():
        if abs(ratio - c) > FACTOR_TOLERANCE.get(dtypes[name], 1e-4) * max(abs(c), abs(ratio)):
            raise BalanceError(
                f"parameter {name}: its gradient was multiplied by {ratio:.6g} between the "
                f"backward and the optimizer's step, most others by {c:.6g}. Values need one "
                "common factor (clipping by the global norm, loss scaling, averaging); "
                "clipping or scaling parameters one by one is not supported."
            )
    return c


def check_balance(
    dots: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    directions: Mapping[str, Tensor],
    c: float,
    keys: list[tuple[str, str]],
    lowest: torch.dtype,
    over_processes: Callable[[Tensor], Tensor] = lambda own: own,
) -> None:
    """``c sum_i <g_i, V_k> == <.grad, V_k>`` for every parameter and direction.

    Args:
        dots: name -> [k, n]; directions: name -> V [k, *shape]; keys: (method, target) of each k;
            lowest: the coarsest dtype of the backward; over_processes: adds up what each process
            has of it.

    Raises:
        NonFiniteError: there is nothing to compare.
        BalanceError: names the parameter that is furthest off, and the likely causes.
    """
    names = [name for name in directions if name in gradients]
    if not names:
        return
    entries, tolerances = [], []
    for name in names:
        V, g = real(directions[name]).reshape(len(keys), -1), real(gradients[name])
        none = torch.zeros(V.shape[0], 1, dtype=torch.float64, device=V.device)
        entries.append(_sides(g, V, c * dots[name] if name in dots else none))
        dtype = min(lowest, g.dtype, key=lambda dtype: torch.finfo(dtype).bits)
        tolerances.append((BALANCE_TOLERANCE[dtype], torch.finfo(dtype).eps))
    device = entries[0][0].device
    # [parameters, k], looked at together: one wait for the device
    total, typical, parts, sizes = (
        torch.stack([x.to(device) for x in column]) for column in zip(*entries)
    )
    parts, sizes = over_processes(torch.stack([parts, sizes]))
    shares = torch.tensor(tolerances, dtype=torch.float64, device=device).T[:, :, None]
    allowed, rounding = shares * (sizes + typical)
    # a gradient that vanishes mathematically (a key's bias) is pure rounding of summands as large
    # as other parameters'
    largest = (allowed + rounding.sum(0)).clamp(min=torch.finfo(torch.float64).tiny)
    off = (total - parts).abs() / largest
    place = off.nan_to_num(torch.inf).argmax()
    worst, here, given = torch.stack([torch.take(x, place) for x in (off, parts, total)]).tolist()
    if not worst <= 1.0:
        at, k = divmod(int(place), len(keys))
        _refuse(names[at], keys[k], here, given)


def _sides(g: Tensor, V: Tensor, parts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``<G, V_k>``, its typical size, the sum of the parts, and of their sizes: [k] each."""
    total = (V * g.flatten().to(V.dtype)).sum(1, dtype=torch.float64)
    typical = (V.norm(dim=1) * g.norm()).double() / math.sqrt(g.numel())
    return total, typical, parts.sum(1), parts.abs().sum(1)


def _refuse(name: str, key: tuple[str, str], here: float, given: float) -> NoReturn:
    method, target = key
    if not math.isfinite(here) or not math.isfinite(given):
        raise NonFiniteError(
            f"parameter {name}: the values of method {method} towards target {target} add up to "
            f"{here:.6g}, and the gradient gives {given:.6g}. The run has diverged; the weights "
            "have not been changed and no value of this step was stored"
        )
    raise BalanceError(
        f"parameter {name}: the samples' parts add up to {here:.6g}, but the gradient gives "
        f"{given:.6g} (method {method}, target {target}). Likely causes: the parameter got a "
        "gradient outside `with attr.batch(...)` (a regulariser, an earlier backward without "
        "zero_grad), it is used inside a compiled region or an extension that is not seen, .grad "
        "was changed by other than a common factor (noise, a per-parameter clip), or it was "
        "averaged over processes without the Attributor being told (give it the "
        "DistributedDataParallel itself, or processes=Processes(group))."
    )


def check_forward_balance(
    values: Tensor,
    gradients: Mapping[str, Tensor],
    directions: Mapping[str, Tensor],
    keys: list[tuple[str, str]],
    over_processes: Callable[[Tensor], Tensor],
) -> None:
    """The same check over all parameters at once, for values [k, n] that come from tokens.

    The forward pass uses unfused attention, so its rounding is that of the coarsest dtype in use,
    not the order of a sum.

    Raises:
        BalanceError
    """
    whole = {name: v for name, v in directions.items() if name in gradients}
    flat_V = torch.cat([v.reshape(len(keys), -1).double() for v in whole.values()], 1)
    flat_g = torch.cat([gradients[name].flatten().double() for name in whole])
    check_balance(
        {"(all)": values},
        {"(all)": flat_g.to(next(iter(gradients.values())).dtype)},
        {"(all)": flat_V},
        1.0,
        keys,
        torch.float32,
        over_processes,
    )


def check_seen(norms: Mapping[str, float], seen: set[str]) -> None:
    """Every parameter with a gradient was used under our eyes, and the other way round.

    Raises:
        UnseenParameterError, BalanceError
    """
    if lost := sorted(seen - norms.keys()):
        raise BalanceError(
            f"parameter {shown(lost)}: the samples have a part in its gradient, but it has no "
            ".grad (any more). backward(inputs=...), an optimizer that steps in the backward "
            "(post-accumulate-grad hooks), or p.grad = None takes it away. Let loss.backward() "
            "fill .grad, zero it after optimizer.step(), and leave a parameter that is not to be "
            "moved out by requires_grad_(False)"
        )
    unseen = [name for name, norm in norms.items() if name not in seen and norm != 0]
    if unseen:
        raise UnseenParameterError(
            f"parameter {shown(unseen)}: it has a gradient but no use of it was seen inside `with "
            "attr.batch(...)`. Forward and loss.backward() of the micro-batch must both run inside "
            "the block, and not inside torch.compile; a gradient from torch.autograd.grad that is "
            "put into .grad is not seen. Or leave the parameter out of the values by params="
            "'<regex that does not match it>'."
        )


def shown(names: list[str]) -> str:
    """The first five of them."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
