"""Mean loss per token over chosen chunks, in all and by domain, in nats.

The number is sum over tokens / number of tokens, not a mean of the means of batches or chunks: it
does not depend on the batch size, and chunks with ignored targets do not weigh more per token. Sums
are kept in float64, so that it does not depend on the order either, beyond the rounding of the
forward passes themselves.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from inrun.models import IGNORED_TARGET, LanguageModel


@dataclass(frozen=True)
class EvalBatch:
    """tokens, targets: int64 [n, t], -100 = no loss here; domains: n names; document_ids: int [n,
    t] or None.
    """

    tokens: Tensor
    targets: Tensor
    domains: Sequence[str]
    document_ids: Tensor | None = None

    def __post_init__(self):
        if len(self.domains) != len(self.tokens):
            raise ValueError(
                f"{len(self.tokens)} samples with {len(self.domains)} domains; give one name "
                "per sample"
            )


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


class ChunkSource(Protocol):
    """What `chunk_batches` needs of a corpus; `inrun.data.Corpus` has it."""

    chunks: pa.Table
    """Columns chunk_id and domain."""

    def __getitem__(self, ids: np.ndarray) -> Tensor:
        """int64 [n, t + 1]"""


def chunk_batches(
    corpus: ChunkSource, ids: Sequence[int] | np.ndarray, batch_size: int
) -> Iterator[EvalBatch]:
    """The chunks `ids` in batches, the last one as short as it has to be; targets are the tokens
    shifted by one.
    """
    ids = np.asarray(ids, dtype=np.int64)
    chunk_ids = corpus.chunks["chunk_id"].to_numpy()
    order = np.argsort(chunk_ids, kind="stable")
    places = order[np.searchsorted(chunk_ids, ids, sorter=order).clip(max=len(order) - 1)]
    if unknown := ids[chunk_ids[places] != ids].tolist():
        raise KeyError(
            f"{len(unknown)} ids are not chunks of this corpus, first {unknown[:5]}; is it "
            "another split?"
        )
    domains = corpus.chunks["domain"].take(pa.array(places)).to_pylist()
    for start in range(0, len(ids), batch_size):
        rows = slice(start, start + batch_size)
        chunk = corpus[ids[rows]]
        yield EvalBatch(chunk[:, :-1], chunk[:, 1:], domains[rows])


@torch.no_grad()
def evaluate(
    model: LanguageModel, batches: Iterable[EvalBatch], autocast: torch.dtype | None = None
) -> Losses:
    """Losses of `model` on `batches`, moved to the device of its parameters.

    Runs without gradients and without dropout, hence without touching a random generator, and puts
    every module back into the mode it was in. autocast: dtype of the matrix products
    (torch.bfloat16) or None for the model's own. Raises ValueError if there is nothing to score, in
    all or in a domain; a loss that is not finite is returned as is.
    """
    device = next(model.parameters()).device
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    with (
        evaluating(model),
        torch.autocast(device.type, dtype=autocast, enabled=autocast is not None),
    ):
        for batch in batches:
            document_ids = None if batch.document_ids is None else batch.document_ids.to(device)
            targets = batch.targets.to(device)
            losses = model.loss(
                batch.tokens.to(device), targets, reduction="none", document_ids=document_ids
            )
            chunk_sums = losses.double().sum(1).tolist()
            chunk_counts = (targets != IGNORED_TARGET).sum(1).tolist()
            for domain, loss, count in zip(batch.domains, chunk_sums, chunk_counts):
                sums[domain] = sums.get(domain, 0.0) + loss
                counts[domain] = counts.get(domain, 0) + count
    if not counts:
        raise ValueError("no batch to evaluate on; give at least one chunk")
    if silent := [domain for domain, count in counts.items() if count == 0]:
        raise ValueError(
            f"every target of {silent} is ignored (-100), so these domains have no loss; "
            "leave them out"
        )
    return Losses(sums, counts)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode inside, in its own former mode after (a frozen dropout stays
    frozen).
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
