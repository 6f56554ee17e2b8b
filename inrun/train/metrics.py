"""The numbers of a log line: speed, and what the last step's values look like.

The keys are explained in `log.py`.
"""

import math
import time

import torch
from torch import Tensor

from inrun import models
from inrun.attributor import Attributor

#: dense bf16 peak, operations per second, by a part of the device's name as torch gives it
#: (NVIDIA's data sheets)
PEAK_FLOPS = {"A100": 312e12, "H100": 989e12, "H200": 989e12}


class Speed:
    """Steps and tokens since the last line.

    Args:
        config: of the model, for the operations per token.
        context: tokens of a sample.
        devices: how many share the work.
    """

    def __init__(self, config: models.Config, context: int, device: torch.device, devices: int = 1):
        self._flops = models.flops_per_token(config, context)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        self._peak = next(
            (peak * devices for part, peak in PEAK_FLOPS.items() if part in name), None
        )
        self.restart()

    def restart(self) -> None:
        self._since, self._steps, self._tokens = time.monotonic(), 0, 0

    def count(self, tokens: int) -> None:
        self._steps, self._tokens = self._steps + 1, self._tokens + tokens

    def row(self) -> dict[str, float]:
        """Rates since the last row; then counts anew."""
        seconds = max(time.monotonic() - self._since, 1e-9)
        row = {
            "seconds_per_step": seconds / max(self._steps, 1),
            "tokens_per_second": self._tokens / seconds,
        }
        if self._peak:
            row["mfu"] = row["tokens_per_second"] * self._flops / self._peak
        self.restart()
        return row


def value_row(attributor: Attributor | None, step: int) -> dict[str, float]:
    """The `value/...` keys for `step` (counted from 0); empty if it was not valued."""
    if attributor is None or attributor.last_step is None or attributor.last_step.step != step:
        return {}
    row: dict[str, float] = {}
    method = attributor.methods[0].name
    for target, values in attributor.last.items():
        values = torch.cat(attributor.processes.gathered(values.cpu()))
        row[f"value/sum/{target}"] = attributor.last_step.sums[method, target]
        row[f"value/pos_frac/{target}"] = float((values > 0).double().mean())
        row[f"value/entropy/{target}"] = _spread(values)
        ledger = attributor.ledger.last.get((method, target))
        if ledger is not None and ledger["residual"] is not None:
            row[f"value/residual/{target}"] = ledger["residual"]
    return row


def _spread(values: Tensor) -> float:
    """Entropy of |values| / sum |values| over log n.

    0 where that is not defined: one sample, or all zero.
    """
    sizes = values.abs().double()
    if len(sizes) < 2 or float(sizes.sum()) == 0:
        return 0.0
    shares = sizes / sizes.sum()
    return float(torch.special.entr(shares).sum() / math.log(len(shares)))
