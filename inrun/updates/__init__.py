"""What an optimizer does with a gradient, as a pure function.

An `Update` is a snapshot of one parameter's update rule just before a step: `u(G)` is the whole
change the optimizer would make (momentum and weight decay included), so that ``w_next = w - u(G)``.
Attribution needs three things of it:

- `__call__`: u(g), for any gradient g, nothing being modified;
- `secant`: ``(u(hi G) - u(lo G)) / G``, the slope of the update along the segment from
  "nobody" to "everybody";
- `frozen_slope`: du/dG with the optimizer's state frozen as it was before the step, known before
  the gradient is.

To add an optimizer: subclass `Update`, write `__call__`, and name the optimizer class in
`@register`. That is enough: an elementwise rule gets its secant from differences in float64 (give a
closed form for accuracy and speed), any other rule sets `elementwise = False` and gets its
vector-Jacobian product from autograd.
"""

from inrun.updates.adam import AdamUpdate
from inrun.updates.base import (
    NoFrozenSlopeError,
    UnknownOptimizerError,
    Update,
    register,
    snapshot,
    snapshots,
)
from inrun.updates.blocks import blockwise
from inrun.updates.lion import Lion, LionUpdate
from inrun.updates.muon import MuonUpdate
from inrun.updates.sgd import PlainSGD, SGDUpdate
from inrun.updates.smoothing import agreement, coalition_slope

__all__ = [
    "AdamUpdate",
    "Lion",
    "LionUpdate",
    "MuonUpdate",
    "NoFrozenSlopeError",
    "PlainSGD",
    "SGDUpdate",
    "UnknownOptimizerError",
    "Update",
    "agreement",
    "blockwise",
    "coalition_slope",
    "register",
    "snapshot",
    "snapshots",
]
