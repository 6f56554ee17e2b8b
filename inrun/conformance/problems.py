"""Models with data and a loss: text with next-token labels, and vectors, sequences or images with
regression targets.

Every number is drawn from a seed that is part of the problem, so a case is the same batch
everywhere.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import inrun_kernels
from inrun.conformance.networks import LENGTH, VOCAB, Text, seeded
from inrun.conformance.problem import IGNORED, Batch, Problem, size

#: samples of the validation batches; one alone, and several whose gradients must be added before
#: anything is multiplied
ONE, SEVERAL = {"val": 1}, {"val": 3}


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def token_losses(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of every token [n, t]; 0 where the label is ignored."""
    logits, labels = model(batch["tokens"]), batch["labels"]
    losses = F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view_as(labels)


def mean_token_loss(model: nn.Module, part: Batch, divisor: float) -> Tensor:
    """The same number by the loss's own mean over the micro-batch's labels, weighted back to the
    mean over the step's.
    """
    logits, labels = model(part["tokens"]), part["labels"]
    mean = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    return mean * (count_labels(part) / divisor)


def head_loss(model: Any, part: Batch, divisor: float) -> Tensor:
    """The same number by the head that never holds whole logits."""
    loss = inrun_kernels.cross_entropy_sum(
        model.features(part["tokens"]), model.head.weight, part["labels"], ignore_index=IGNORED
    )
    return loss / divisor


def count_labels(batch: Batch) -> int:
    return int((batch["labels"] != IGNORED).sum())


def squared_errors(model: nn.Module, batch: Batch) -> Tensor:
    """Mean squared error of every sample [n]."""
    return F.mse_loss(model(batch["x"]), batch["y"], reduction="none").flatten(1).mean(1)


def _tokens(count: int, seed: int, ragged: bool, padding: bool, vocabulary: int = VOCAB) -> Batch:
    """Tokens below `vocabulary` and labels [count, 5]; `ragged` and `padding` as in `text`."""
    generator = _generator(seed)
    tokens = torch.randint(1, vocabulary, (count, LENGTH), generator=generator)
    labels = torch.randint(0, VOCAB, (count, LENGTH), generator=generator)
    if ragged:
        for i in range(count):
            # the first sample keeps its last label, the next one loses it, ...
            labels[i, LENGTH - i % (LENGTH + 1) :] = IGNORED
    if padding:
        tokens[::2, -2:] = 0
    return {"tokens": tokens, "labels": labels}


def text(
    body: Callable[[], nn.Module],
    n: int = 6,
    targets: Mapping[str, int] = SEVERAL,
    ragged: bool = False,
    padding: bool = False,
    late: bool = False,
    loss: Callable[[nn.Module, Batch, float], Tensor] | None = None,
    together: bool = False,
    quiet: bool = False,
    **options,
) -> Problem:
    """Tokens [n, 5] with random next-token labels.

    Args:
        body: builds the model's body; `options` go to `Text`.
        ragged: samples have unequal numbers of labels, and one has none at all.
        padding: the last tokens of half of the samples are token 0.
        late: the first batch has the lower half of the vocabulary only.
        loss: what training uses instead of the sum of rows.
    """

    return Problem(
        model=lambda: _built(lambda: Text(body(), **options)),
        batch=lambda step: _tokens(
            n, 100 + step, ragged, padding, VOCAB // 2 if late and step == 0 else VOCAB
        ),
        targets={
            name: partial(_tokens, m, 900 + k, ragged and m > 1, padding)
            for k, (name, m) in enumerate(targets.items())
        },
        rows=token_losses,
        count=count_labels,
        loss=loss,
        together=together,
        quiet=quiet,
    )


def regression(
    model: Callable[[], nn.Module],
    shape: tuple[int, ...],
    n: int = 6,
    targets: Mapping[str, int] = SEVERAL,
    together: bool = False,
) -> Problem:
    """Inputs [n, *shape] to whatever shape the model gives, with random values to be hit."""

    def build(count: int, seed: int) -> Batch:
        generator = _generator(seed)
        x = torch.randn(count, *shape, dtype=torch.float64, generator=generator)
        with torch.no_grad():
            out = _built(model)(x).shape[1:]
        return {"x": x, "y": torch.randn(count, *out, dtype=torch.float64, generator=generator)}

    return Problem(
        model=lambda: _built(model),
        batch=lambda step: build(n, 200 + step),
        targets={name: partial(build, m, 800 + k) for k, (name, m) in enumerate(targets.items())},
        rows=squared_errors,
        count=size,
        together=together,
    )


def _built(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        return seeded(build())
