"""``drop = drift + sum of values + residual``, for every step, target and method.

`drop` is what the target's loss lost between this step's weights and the next's; `drift` what
momentum and weight decay would have done without any sample, ``L(w) - L(w - u(0))``; `residual`
what the method's approximation leaves. Over a run with every=1 the drops telescope to the total
drop of the loss. A row is complete only when the weights have moved, so it waits until the next
evaluation at the new ones.
"""

from dataclasses import dataclass

from inrun.store.writer import ValueWriter


@dataclass
class Waiting:
    step: int
    target: str
    method: str
    loss_before: float
    drift: float | None
    values: float


class Ledger:
    def __init__(self):
        self.waiting: list[Waiting] = []
        self.last: dict[tuple[str, str], dict] = {}

    def open(self, row: Waiting) -> None:
        self.waiting.append(row)

    def close(self, losses: dict[str, float], writer: ValueWriter | None) -> None:
        """Complete the waiting rows with the targets' losses at the new weights."""
        for row in self.waiting:
            drop = row.loss_before - losses[row.target]
            entry = {
                "step": row.step,
                "target": row.target,
                "method": row.method,
                "loss_before": row.loss_before,
                "loss_after": losses[row.target],
                "drop": drop,
                "drift": row.drift,
                "values": row.values,
                "residual": None if row.drift is None else drop - row.drift - row.values,
            }
            self.last[row.method, row.target] = entry
            if writer:
                writer.ledger(entry)
        self.waiting = []
