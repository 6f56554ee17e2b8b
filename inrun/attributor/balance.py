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

from inrun.attributor.tolerance import Rounding, long_sums


class BalanceError(RuntimeError):
    """The samples' parts do not add up to the gradient of a parameter."""


class UnseenParameterError(BalanceError):
    """A parameter got a gradient, but no use of it was seen."""


class NonFiniteError(RuntimeError):
    """NaN or infinity in a sample's gradient."""


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
    rounding: Rounding,
    over_processes: Callable[[Tensor], Tensor] = lambda own: own,
) -> None:
    """``c sum_i <g_i, V_k> == <.grad, V_k>`` for every parameter and direction.

    Args:
        dots: name -> [k, n]; directions: name -> V [k, *shape]; keys: (method, target) of each k;
            rounding: in which arithmetic; over_processes: adds up what each process has of it.

    Raises:
        NonFiniteError: there is nothing to compare.
        BalanceError: names the parameter that is furthest off, and the likely causes.
    """
    names = [name for name in directions if name in gradients]
    if not names:
        return
    entries, dtypes = [], []
    for name in names:
        V, g = real(directions[name]).reshape(len(keys), -1), real(gradients[name])
        none = torch.zeros(V.shape[0], 1, dtype=torch.float64, device=V.device)
        entries.append(_sides(g, V, c * dots[name] if name in dots else none))
        dtypes.append(g.dtype)
    device = entries[0][0].device
    # [parameters, k], looked at together: one wait for the device
    total, spread, *sums = (torch.stack([x.to(device) for x in column]) for column in zip(*entries))
    everybodys = over_processes(torch.stack(sums))
    total, spread, parts, sizes, squares = torch.stack([total, spread, *everybodys]).cpu()
    allowed = rounding.allowed(dtypes, spread, squares.sqrt(), sizes)
    difference = total - parts
    long = long_sums([gradients[name] for name in names], sizes + spread)
    off = (difference.abs() / (allowed + long)).nan_to_num(torch.inf)
    if bool((off <= 1.0).all()):  # otherwise nothing is learnt from this step
        off = rounding.shares.note(names, total, difference, allowed)
    place = int(off.argmax())
    if not off.flatten()[place] <= 1.0:
        at, k = divmod(place, len(keys))
        _refuse(names[at], keys[k], float(parts[at, k]), float(total[at, k]), rounding.way_out)


def with_penalties(
    dots: Mapping[str, Tensor], penalties: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Name -> [k, n + 1]: beside the samples' parts [k, n] that of penalties [k, 1], if any."""
    parts = dict(dots)
    for name, part in penalties.items():
        parts[name] = torch.cat([parts[name], part], 1) if name in parts else part
    return parts


def _sides(g: Tensor, V: Tensor, parts: Tensor) -> tuple[Tensor, ...]:
    """``<G, V_k>``, the norm of its summands, the sum of the parts, of their sizes, and of their
    squares: [k] each.
    """
    products = V * g.flatten().to(V.dtype)
    total = products.sum(1, dtype=torch.float64)
    return total, products.norm(dim=1).double(), parts.sum(1), parts.abs().sum(1), (parts**2).sum(1)


def _refuse(name: str, key: tuple[str, str], here: float, given: float, way_out: str) -> NoReturn:
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
        "zero_grad), .grad was changed by other than a common factor (noise, a per-parameter "
        "clip), a use of it was not seen, or it was averaged over processes without the Attributor "
        "being told (give it the DistributedDataParallel itself, or processes=Processes(group))."
        + way_out
    )


def check_forward_balance(
    values: Tensor,
    gradients: Mapping[str, Tensor],
    directions: Mapping[str, Tensor],
    keys: list[tuple[str, str]],
    rounding: Rounding,
    over_processes: Callable[[Tensor], Tensor],
) -> None:
    """The same check over all parameters at once, for values [k, n] that come from tokens.

    The values come from a pass of their own, whose autocast nobody sees: it may have been in bf16.

    Raises:
        BalanceError
    """
    whole = {name: v for name, v in directions.items() if name in gradients}
    flat_V = torch.cat([v.reshape(len(keys), -1).double() for v in whole.values()], 1)
    flat_g = torch.cat([gradients[name].flatten().double() for name in whole])
    dtype = next(iter(gradients.values())).dtype
    check_balance(
        {"(all)": values},
        {"(all)": flat_g.to(dtype)},
        {"(all)": flat_V},
        1.0,
        keys,
        rounding.of_another_pass(dtype),
        over_processes,
    )


def check_seen(norms: Mapping[str, float], seen: set[str], way_out: str = "") -> None:
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
            "the block; a gradient from torch.autograd.grad that is put into .grad is not seen."
            f"{way_out} Or leave the parameter out of the values by params='<regex that does not "
            "match it>'."
        )


def shown(names: list[str]) -> str:
    """The first five of them."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
