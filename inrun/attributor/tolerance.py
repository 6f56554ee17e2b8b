"""How far the two sides of the balance may differ by rounding alone.

The samples' parts and `.grad` add up the same products, in another order and in other dtypes. Three
things differ, each in the size of what was added, not of what the sum comes to:

- each element of a weight's gradient is rounded to the dtype of the backward, once in every
  micro-batch, and so may be what a sample has in it. Roundings are independent, so their sum with V
  is that of their squares: ``unit (sqrt(rounds) |G V| + |c d|)``, |G V| the norm of the elementwise
  product, |c d| that of the samples' parts, unit half the dtype's epsilon (2^-8 for bf16).
- sums of products are taken in float32 or float64: in units of ``sum |c d_i| + |G V|``.
- a gradient that vanishes mathematically (a key's bias; the scale of what is normalised) is a sum
  of summands as large as other parameters': in units of that of all parameters together.

One step cannot tell an error of 2 % from rounding where the parts nearly cancel. What is systematic
adds up over steps, rounding does not: `Shares` sees it.

How much of each was measured and by which margins: docs/decisions/013-balance-tolerance.md.
"""

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

#: of the roundings' root mean square
ROUNDINGS = 16.0
#: the same where values come from a pass of their own: nothing but the inputs is shared
OF_ANOTHER_PASS = 32.0
#: (share of a parameter's own summands, share of all parameters'), by the dtype of sums
SUMS = {torch.float64: (1e-9, 1e-12), torch.float32: (6e-5, 6e-6)}
#: a systematic difference is refused from this share of the gradient's side on ...
LEAST_SHARE = 0.01
#: ... if it is this many of its standard errors, and after so many steps
SIGNIFICANT, STEPS = 6.0, 8
#: what a difference is before any was seen: its root mean square over what is allowed, and how
#: many steps that is worth
EXPECTED, WORTH = 0.05, 10


def unit(dtype: torch.dtype) -> float:
    """Half the distance from 1 to the next number: the largest relative rounding."""
    return torch.finfo(dtype).eps / 2


def coarser(a: torch.dtype, b: torch.dtype) -> torch.dtype:
    """The dtype that rounds more."""
    return a if torch.finfo(a).eps >= torch.finfo(b).eps else b


def long_sums(gradients: list[Tensor], added: Tensor) -> Tensor:
    """What one step's sums over large parameters may differ by, [parameters, k].

    A sum of m products in float32 wanders by ``sqrt(m)`` roundings, ROUNDINGS times of which are
    allowed. It does not add up over steps, so `Shares` does without it.

    Args:
        gradients: of the parameters; m is their number of elements.
        added: sum of |c d_i| and |G V| [parameters, k].
    """
    wide = [torch.float64 if g.dtype == torch.float64 else torch.float32 for g in gradients]
    facts = [ROUNDINGS * unit(d) * math.sqrt(g.numel()) for d, g in zip(wide, gradients)]
    return torch.tensor(facts, dtype=torch.float64)[:, None] * added


class Shares:
    """Whether the sides differ by a fixed share of the gradient's side, over the steps so far.

    A regression through 0 of difference on side, each step weighed by what it may differ by.

    Attributes:
        places: name -> its row in the sums.
        sums: of side^2, side difference, difference^2, and 1 [rows, k, 4].
    """

    def __init__(self) -> None:
        self.places: dict[str, int] = {}
        self.sums = torch.zeros(0, 0, 4, dtype=torch.float64)

    def note(self, names: list[str], side: Tensor, difference: Tensor, allowed: Tensor) -> Tensor:
        """One more step, [parameters, k] on the CPU each. Returns how significant a share is that
        is to be refused, in units of what is: from 1 on it is.
        """
        for name in names:
            self.places.setdefault(name, len(self.places))
        x, y = side / allowed, difference / allowed
        if self.sums.shape[:2] != (len(self.places), side.shape[1]):
            grown = torch.zeros(len(self.places), side.shape[1], 4, dtype=torch.float64)
            if self.sums.shape[1] == side.shape[1]:
                grown[: len(self.sums)] = self.sums
            self.sums = grown
        at = torch.tensor([self.places[name] for name in names])
        self.sums.index_add_(0, at, torch.stack([x * x, x * y, y * y, torch.ones_like(x)], -1))
        return _significance(self.sums[at])


def _significance(sums: Tensor) -> Tensor:
    """[parameters, k]: of a share above LEAST_SHARE, in units of SIGNIFICANT standard errors."""
    xx, xy, yy, steps = sums.unbind(-1)
    xx = xx.clamp(min=torch.finfo(torch.float64).tiny)
    share = xy / xx
    squares = (yy - share * xy).clamp(min=0) + WORTH * EXPECTED**2
    error = (squares / (steps - 1 + WORTH) / xx).sqrt()
    judged = (share.abs() > LEAST_SHARE) & (steps >= STEPS)
    return torch.where(judged, share.abs() / (SIGNIFICANT * error), 0.0)


@dataclass
class Rounding:
    """What a step's balance must know of its arithmetic.

    Attributes:
        lowest: the coarsest dtype in which parts of gradients were formed.
        rounds: micro-batches, after each of which `.grad` is rounded.
        shares: what the steps before have shown.
        way_out: what a refusal ends with.
        roundings: ROUNDINGS or OF_ANOTHER_PASS.
    """

    lowest: torch.dtype = torch.float32
    rounds: int = 1
    shares: Shares = field(default_factory=Shares)
    way_out: str = ""
    roundings: float = ROUNDINGS

    def of_another_pass(self, dtype: torch.dtype) -> "Rounding":
        """That of values from a pass of their own over weights of this dtype, some of which may
        have been in a coarser one.
        """
        lowest = torch.float32 if dtype == torch.float64 else torch.bfloat16
        return replace(self, lowest=lowest, roundings=OF_ANOTHER_PASS)

    def allowed(
        self, dtypes: list[torch.dtype], spread: Tensor, each: Tensor, sizes: Tensor
    ) -> Tensor:
        """Largest difference of the sides, [parameters, k] as the arguments.

        Args:
            dtypes: of each parameter's `.grad`.
            spread: |G V|; each: |c d|; sizes: sum of |c d_i|.
        """
        dtypes = [coarser(self.lowest, dtype) for dtype in dtypes]
        wide = [torch.float64 if dtype == torch.float64 else torch.float32 for dtype in dtypes]
        facts = [(self.roundings * unit(dtype), *SUMS[sums]) for dtype, sums in zip(dtypes, wide)]
        units, own, all_of_them = torch.tensor(facts, dtype=torch.float64).to(spread).T[:, :, None]
        added = sizes + spread
        rounded = units * (math.sqrt(self.rounds) * spread + each)
        found = rounded + own * added + all_of_them * added.sum(0)
        return found.clamp(min=torch.finfo(torch.float64).tiny)
