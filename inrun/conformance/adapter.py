"""The three questions that an engine is asked."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from inrun.conformance.problem import Case


class Adapter(Protocol):
    """An engine under test.

    Attributes:
        name: as it stands in the table.
        same_bits: whether the engine claims that training goes on to the bit as if it were not
            there; it is then held to that. Others are judged with the tolerance of the values.
    """

    name: str
    same_bits: bool

    def supports(self, case: Case) -> str | None:
        """None if the engine can be asked for this case, otherwise the reason why not, in a few
        words.
        """
        ...

    def values(self, case: Case) -> Mapping[str, Tensor]:
        """Train as ``case.run`` does and value the samples of every step.

        Returns: for each target, under the keys that ``case.quantities`` asks for, float64 tensors;
        positive = lowered the target's loss.
            ``"<target>"``: values [steps, n], samples in the order of the batch (all
            micro-batches one after the other).
            ``"<target>:tokens"``: [steps, n, t], the value of every predicted token.
            ``"<target>:drift"``: [steps], what the optimizer does to the loss without any sample.
            ``"<target>:ledger"``: [1, 4], of the last step: drop, drift, sum of the values,
            residual.
        """
        ...

    def training(self, case: Case) -> Mapping[str, Tensor]:
        """Train as ``case.run`` does while samples are valued, and return `state_of` what is left
        behind.
        """
        ...
