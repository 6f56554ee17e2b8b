"""A batch of chunks with its targets, and in what precision it goes through the model.

The loss of a step is (sum of token losses) / (targets of the whole logical batch), however it is
cut into micro-batches: a micro-batch with fewer targets weighs less, as it should, and 1x8, 2x4 and
8x1 give the same gradient within rounding.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from inrun.data.corpus import Corpus
from inrun.models import IGNORED_TARGET, LanguageModel


class PrecisionError(ValueError):
    """The device that was asked for is not there, or cannot do what was asked."""


@dataclass(frozen=True)
class Precision:
    """Device, and the dtype of autocast (None: the weights' own dtype throughout)."""

    device: torch.device
    dtype: torch.dtype | None

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

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)


@dataclass(frozen=True)
class Batch:
    """tokens, targets: int64 [n, t], -100 = no loss here; document_ids: int64 [n, t], or None for
    one document per sample.
    """

    tokens: Tensor
    targets: Tensor
    document_ids: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def count(self) -> int:
        """Number of targets."""
        return int((self.targets != IGNORED_TARGET).sum())

    def loss(self, model: LanguageModel) -> Tensor:
        """Sum of token losses (nats) of the batch, a scalar; the model's fused head never holds
        whole logits.
        """
        return model.loss(
            self.tokens, self.targets, reduction="sum", document_ids=self.document_ids
        )

    def losses(self, model: LanguageModel) -> Tensor:
        """Sum of token losses (nats) of each sample: [n]."""
        return model.loss(
            self.tokens, self.targets, reduction="none", document_ids=self.document_ids
        ).sum(1)

    def split(self, size: int) -> list["Batch"]:
        """Micro-batches of `size` samples, the last one as short as it has to be; 0: all at
        once.
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
    """Texts as samples, by the corpus' tokenizer: the first block_size + 1 tokens of each, shorter
    ones filled up with targets that are not predicted.

    A text is followed by <|endoftext|>, as a document of the corpus is. Raises ValueError for a
    text of no token.
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
