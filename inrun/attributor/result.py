"""What one step left behind."""

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor


@dataclass
class StepResult:
    """The values of one optimizer step.

    Attributes:
        step: number of optimizer steps before this one.
        ids: sample ids [n] of this process as they were given, all micro-batches in order: int64,
            or objects that are str or bytes.
        values: (method, target) -> float64 [n], positive = lowered the target's loss.
        per_parameter: (method, target) -> {parameter name: float64 [n]}; the parts of `values`.
            Empty on the universal route.
        tokens: (method, target) -> one [n_micro, t] tensor per micro-batch, with per_token=True.
        sums: (method, target) -> sum of the values, over all processes.
        sizes: (method, target) -> sum of their sizes, over all processes.
        excess: method -> share by which the slope that was known before the backward, or would have
            been, overstates the sum of the step's values: the worst of the targets. Of methods with
            such a slope.
        frozen: those of them whose values are by that slope in this step.
        penalties: (method, target) -> what penalties on weights that were added to the loss did to
            the target's loss; no sample's, and part of the ledger's drift.
        clip: c, the common factor between the gradients that were backpropagated and those that the
            optimizer got.
        loss_before: target -> L(w) where it was evaluated.
        drift: target -> what the optimizer does to the loss without any sample, where it was
            evaluated.
        stateless: share of the elements whose second moment is still zero.
        audited: samples of this process whose micro-batch was audited, or had no other sample.
    """

    step: int
    ids: np.ndarray
    values: dict[tuple[str, str], Tensor]
    per_parameter: dict[tuple[str, str], dict[str, Tensor]] = field(default_factory=dict)
    tokens: dict[tuple[str, str], list[Tensor]] = field(default_factory=dict)
    sums: dict[tuple[str, str], float] = field(default_factory=dict)
    sizes: dict[tuple[str, str], float] = field(default_factory=dict)
    excess: dict[str, float] = field(default_factory=dict)
    frozen: set[str] = field(default_factory=set)
    penalties: dict[tuple[str, str], float] = field(default_factory=dict)
    clip: float = 1.0
    loss_before: dict[str, float] = field(default_factory=dict)
    drift: dict[str, float] = field(default_factory=dict)
    stateless: float = 0.0
    audited: int = 0
