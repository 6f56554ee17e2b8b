"""Validation targets of a run.

A target is the mean loss per token over a few validation chunks that are chosen once, by the run's
seed, so that the loss is a function of the weights alone and the ledger telescopes.
"""

import hashlib
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from inrun.attributor import Processes
from inrun.config import ConfigError
from inrun.data.batch import Batch, batch_of, batch_of_texts
from inrun.data.corpus import Corpus
from inrun.data.fields import PLAIN, Columns
from inrun.data.sampler import Sampler
from inrun.data.sources import read_files
from inrun.evaluate import evaluating
from inrun.models import LanguageModel
from inrun.train.precision import Precision


@dataclass(frozen=True)
class TargetConfig:
    """A validation loss: on chunks of a split, or on documents of your own."""

    name: str
    """As it stands in the store."""
    domains: tuple[str, ...] = ()
    """Of these domains only; empty: of all."""
    split: str = "val"
    """Of the corpus; not used with `path`."""
    chunks: int = 16
    """How many; with `path` the most that are taken, the first ones of the domains."""
    path: str = ""
    """Documents in a file, a folder or a glob, with the columns of `data`.

    Of each its first block_size + 1 tokens.
    """


@dataclass(frozen=True)
class Targets:
    """The closures that give a run's targets."""

    closures: dict[str, Callable[[], Tensor]]
    """Name -> closure."""
    shared: bool
    """Whether each process's closure gives its part of the loss."""


def target_ids(corpus: Corpus, config: TargetConfig, seed: int) -> np.ndarray:
    """Ids of the target's chunks in its split: int64 [chunks].

    Raises ConfigError if there are not as many.
    """
    ids = corpus.ids(domain=config.domains or None)
    if len(ids) < config.chunks:
        raise ConfigError(
            f"target {config.name!r} wants {config.chunks} chunks, but the {config.split} "
            f"split has {len(ids)} of "
            f"{list(config.domains) or 'all domains'}; lower chunks, or prepare a larger corpus"
        )
    return Sampler(ids, config.chunks, seed).batch_at(0)


def target_batch(
    folder: Path,
    config: TargetConfig,
    seed: int,
    separate: bool = False,
    columns: Columns = PLAIN,
) -> Batch:
    """The samples that the target's loss is taken on; `folder` is that of the prepared corpus.

    columns: of documents of one's own.
    """
    if not config.path:
        corpus = Corpus.open(folder, config.split)
        return batch_of(corpus, target_ids(corpus, config, seed), separate)
    corpus = Corpus.open(folder, "train")
    documents = (
        d
        for d in read_files(config.path, columns)
        if not d.skip and (not config.domains or d.domain in config.domains)
    )
    texts = [document.text for document in itertools.islice(documents, config.chunks)]
    if not texts:
        raise ConfigError(
            f"target {config.name!r}: {config.path} has no document of "
            f"{list(config.domains) or 'any domain'}; name others, or another file"
        )
    return batch_of_texts(corpus, texts)


def target_digest(batch: Batch) -> str:
    """sha256 of the target's tokens and targets: equal digests are equal losses."""
    content = (tensor.numpy().tobytes() for tensor in (batch.tokens, batch.targets))
    return hashlib.sha256(b"".join(content)).hexdigest()


def target_closure(
    model: LanguageModel, batch: Batch, micro_batch: int, precision: Precision, total: int
) -> Callable[[], Tensor]:
    """A closure that gives the loss of `batch` at the model's present weights.

    In evaluation mode: the sum over its tokens by `total` (nats, 0-dim), of which no more than
    `micro_batch` chunks (0: all) go through the model at once.
    """
    parts = batch.split(micro_batch)

    def part_loss(part: Batch) -> Tensor:
        # here, not around `loss`: a part is computed again in the backward, after `loss` has
        # returned
        with evaluating(model), precision.autocast():
            return part.loss(model) / total

    def loss() -> Tensor:
        if len(parts) == 1:
            return part_loss(parts[0])
        # only one part's activations live at a time: the others are computed again in the backward
        return torch.stack(
            [checkpoint(part_loss, part, use_reentrant=False) for part in parts]
        ).sum()

    return loss


def build_targets(
    model: LanguageModel,
    batches: Mapping[str, Batch],
    micro_batch: int,
    precision: Precision,
    processes: Processes,
) -> Targets:
    """The targets on `batches`, by name.

    Dealt out to the processes where there are chunks enough for all of them.
    """
    shared = not processes.alone and all(len(batch) >= processes.size for batch in batches.values())
    closures = {}
    for name, batch in batches.items():
        rows = slice(processes.rank, None, processes.size) if shared else slice(None)
        own = batch[rows].to(precision.device)
        closures[name] = target_closure(model, own, micro_batch, precision, batch.count())
    return Targets(closures, shared)
