"""Mean loss per token over chosen chunks, in all and by domain, in nats.

The number is sum over tokens / number of tokens, not a mean of the means of batches or chunks: it
does not depend on the batch size, and chunks with ignored targets do not weigh more per token. Sums
are kept in float64, so that it does not depend on the order either, beyond the rounding of the
forward passes themselves.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from inrun.data.batch import Batch
from inrun.models import LanguageModel


@dataclass(frozen=True)
class Losses:
    """Sums of token losses (nats) and counts of tokens by domain."""

    sums: dict[str, float]
    counts: dict[str, int]

    @property
    def mean(self) -> float:
        """Nats per token over everything."""
        return sum(self.sums.values()) / self.tokens

    @property
    def tokens(self) -> int:
        """How many targets were scored."""
        return sum(self.counts.values())

    @property
    def by_domain(self) -> dict[str, float]:
        """Nats per token of each domain, in the order in which the domains came."""
        return {domain: self.sums[domain] / self.counts[domain] for domain in self.sums}


@torch.no_grad()
def evaluate(
    model: LanguageModel,
    batches: Iterable[Batch],
    domains: Sequence[str],
    autocast: torch.dtype | None = None,
) -> Losses:
    """Losses of `model` on `batches`, moved to the device of its parameters.

    Runs without gradients and without dropout, hence without touching a random generator, and puts
    every module back into the mode it was in.

    Args:
        batches: of `inrun.data.batch`, with or without borders between documents.
        domains: a name for each sample, over all batches in their order.
        autocast: dtype of the matrix products (torch.bfloat16), None for the model's own.

    Raises:
        ValueError: nothing to score, in all or in a domain, or more or fewer samples than domains.
            A loss that is not finite is returned as is.
    """
    device = next(model.parameters()).device
    sums: list[float] = []
    counts: list[int] = []
    with (
        evaluating(model),
        torch.autocast(device.type, dtype=autocast, enabled=autocast is not None),
    ):
        for batch in batches:
            batch = batch.to(device)
            sums += batch.token_losses(model).double().sum(1).tolist()
            counts += batch.counts().tolist()
    if len(sums) != len(domains):
        raise ValueError(
            f"{len(sums)} samples with {len(domains)} domains; give one name per sample"
        )
    return _by_domain(domains, sums, counts)


def _by_domain(domains: Sequence[str], sums: list[float], counts: list[int]) -> Losses:
    losses = Losses({}, {})
    for domain, loss, count in zip(domains, sums, counts, strict=True):
        losses.sums[domain] = losses.sums.get(domain, 0.0) + loss
        losses.counts[domain] = losses.counts.get(domain, 0) + count
    if not losses.counts:
        raise ValueError("no batch to evaluate on; give at least one chunk")
    if silent := [domain for domain, count in losses.counts.items() if count == 0]:
        raise ValueError(
            f"every target of {silent} is ignored (-100), so these domains have no loss; "
            "leave them out"
        )
    return losses


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode inside, in its own former mode after.

    A dropout that was frozen stays frozen.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
