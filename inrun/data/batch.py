"""Chunks as a batch: tokens, targets, and where documents end.

Training, targets, evaluation and baselines all make their batches here. The loss of a step is
(sum of token losses) / (targets of the whole logical batch), however it is cut into micro-batches:
a micro-batch with fewer targets weighs less, as it should, and 1x8, 2x4 and 8x1 give the same
gradient within rounding.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from inrun.data.corpus import Corpus
from inrun.models import IGNORED_TARGET, LanguageModel


@dataclass(frozen=True)
class Batch:
    """Samples of a language model's loss."""

    tokens: Tensor
    """int64 [n, t]."""
    targets: Tensor
    """int64 [n, t], -100 where no loss is taken."""
    document_ids: Tensor | None = None
    """int64 [n, t]; None: one document per sample."""

    def __len__(self) -> int:
        return len(self.tokens)

    def count(self) -> int:
        """Number of targets."""
        return int(self.counts().sum())

    def counts(self) -> Tensor:
        """Number of targets of each sample: int64 [n]."""
        return (self.targets != IGNORED_TARGET).sum(1)

    def loss(self, model: LanguageModel) -> Tensor:
        """Sum of token losses (nats) of the batch, a scalar.

        The model's fused head never holds whole logits.
        """
        return model.loss(
            self.tokens, self.targets, reduction="sum", document_ids=self.document_ids
        )

    def losses(self, model: LanguageModel) -> Tensor:
        """Sum of token losses (nats) of each sample: [n]."""
        return self.token_losses(model).sum(1)

    def token_losses(self, model: LanguageModel) -> Tensor:
        """Losses (nats) of each token, zero where no loss is taken: [n, t]."""
        return model.loss(
            self.tokens, self.targets, reduction="none", document_ids=self.document_ids
        )

    def split(self, size: int) -> list["Batch"]:
        """Micro-batches of `size` samples, the last one as short as it has to be.

        Size 0: all at once.
        """
        return [self[rows] for rows in slices(len(self), size)]

    def __getitem__(self, rows: slice) -> "Batch":
        documents = None if self.document_ids is None else self.document_ids[rows]
        return Batch(self.tokens[rows], self.targets[rows], documents)

    def to(self, device: torch.device) -> "Batch":
        """From pinned memory without waiting for the copy."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "Batch":
        """In memory that a GPU can copy from by itself."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        documents = None if self.document_ids is None else function(self.document_ids)
        return Batch(function(self.tokens), function(self.targets), documents)


def slices(count: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size` (0: all) that cover `count`."""
    for start in range(0, count, size or count):
        yield slice(start, start + (size or count))


def batch_of(corpus: Corpus, ids: np.ndarray, separate_documents: bool = False) -> Batch:
    """The chunks `ids` [n] as a batch.

    With `separate_documents`, attention stays inside a document, and the first token of the next
    document is not predicted from the one before it.
    """
    chunks = corpus[ids]
    tokens, targets = chunks[:, :-1], chunks[:, 1:]
    if not separate_documents:
        return Batch(tokens, targets)
    marks = torch.zeros_like(chunks)
    for row, starts in enumerate(corpus.document_starts(ids)):
        marks[row, torch.from_numpy(starts).long()] = 1
    documents = marks.cumsum(1)
    return Batch(
        tokens,
        targets.masked_fill(documents[:, 1:] != documents[:, :-1], IGNORED_TARGET),
        documents[:, :-1].contiguous(),
    )


def batch_of_texts(corpus: Corpus, texts: Sequence[str]) -> Batch:
    """Texts as samples, by the corpus' tokenizer.

    Of each text the first block_size + 1 tokens; shorter ones are filled up with targets that are
    not predicted. A text is followed by <|endoftext|>, as a document of the corpus is. Raises
    ValueError for a text of no token.
    """
    rows = [
        [*corpus.tokenizer.encode(text), corpus.tokenizer.eot][: corpus.block_size + 1]
        for text in texts
    ]
    if empty := [k for k, row in enumerate(rows) if len(row) < 2]:
        raise ValueError(f"text {empty[0]} ({texts[empty[0]][:40]!r}) has no token to predict")
    longest = max(map(len, rows)) - 1
    tokens = torch.full((len(rows), longest), corpus.tokenizer.eot, dtype=torch.int64)
    targets = torch.full((len(rows), longest), IGNORED_TARGET, dtype=torch.int64)
    for k, row in enumerate(rows):
        tokens[k, : len(row) - 1] = torch.tensor(row[:-1])
        targets[k, : len(row) - 1] = torch.tensor(row[1:])
    return Batch(tokens, targets)
