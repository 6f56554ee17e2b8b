"""On which device, and in what precision, a batch goes through the model."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch


class PrecisionError(ValueError):
    """The device that was asked for is not there, or cannot do what was asked."""


@dataclass(frozen=True)
class Precision:
    """Where the model computes, and in which dtype."""

    device: torch.device
    """Of weights and batches."""
    dtype: torch.dtype | None
    """Of autocast; None: the weights' own dtype throughout."""

    @classmethod
    def choose(cls, device: str, precision: str) -> "Precision":
        """device: auto, cpu, cuda; precision: auto, fp32, bf16. Raises PrecisionError.

        Apple's GPU is not chosen: values are accumulated in float64, which it lacks.
        """
        if device == "cuda" and not torch.cuda.is_available():
            raise PrecisionError(
                "train.device=cuda, but torch finds no CUDA device; choose auto or cpu"
            )
        chosen = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
        native = chosen.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        if precision == "bf16" and chosen.type == "cuda" and not native:
            raise PrecisionError(
                "train.precision=bf16, but this GPU has no bf16; choose auto or fp32"
            )
        bf16 = precision == "bf16" or (precision == "auto" and native)
        return cls(chosen, torch.bfloat16 if bf16 else None)

    @property
    def about(self) -> dict[str, str]:
        """In words, for the record of a run."""
        return {"device": self.device.type, "autocast": str(self.dtype or "none")}

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)
