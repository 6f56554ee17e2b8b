"""The evaluation of a run: chunks of a held-out split, the same ones each time."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from inrun.config import ConfigError
from inrun.data.batch import Batch, batch_of, slices
from inrun.data.corpus import Corpus
from inrun.data.errors import DataError
from inrun.data.sampler import Sampler
from inrun.evaluate import evaluate
from inrun.models import LanguageModel
from inrun.train.config import TrainConfig
from inrun.train.precision import Precision


@dataclass(frozen=True)
class EvaluationSet:
    """Chunks that a run is evaluated on."""

    corpus: Corpus
    """The split that they are from."""
    ids: np.ndarray
    """int64 [n], ascending."""
    config: TrainConfig
    """How they are batched, and whether documents are kept apart, as in training."""

    @classmethod
    def choose(cls, corpus_folder: Path, config: TrainConfig, seed: int) -> "EvaluationSet":
        """`eval_chunks` chunks of each domain, by the seed.

        Raises ConfigError for a domain that the split lacks, DataError for an empty split.
        """
        corpus = Corpus.open(corpus_folder, config.eval_split)
        if unknown := sorted(set(config.eval_domains) - set(corpus.domains)):
            raise ConfigError(
                f"train.eval_domains: the {config.eval_split} split has no {unknown}, it has "
                f"{corpus.domains}"
            )
        chosen = []
        for domain in config.eval_domains or corpus.domains:
            ids = corpus.ids(domain=domain)
            chosen.append(Sampler(ids, min(len(ids), config.eval_chunks), seed).batch_at(0))
        if not chosen:
            raise DataError(
                f"the {config.eval_split} split of {corpus_folder} is empty. Next: raise "
                f"data.{config.eval_split}_share, or give more text"
            )
        return cls(corpus, np.sort(np.concatenate(chosen)), config)

    def batches(self) -> Iterator[Batch]:
        """The chunks in micro-batches, documents apart where the training keeps them apart."""
        for rows in slices(len(self.ids), self.config.micro_batch or self.config.batch_size):
            yield batch_of(self.corpus, self.ids[rows], self.config.separate_documents)

    @property
    def digest(self) -> str:
        """sha256 of ids and tokens: equal digests are equal losses."""
        content = self.ids.astype("<i8").tobytes() + self.corpus[self.ids].numpy().tobytes()
        return hashlib.sha256(content).hexdigest()

    @property
    def domains(self) -> list[str]:
        """The domain of each chunk."""
        return self.corpus.chunks["domain"].take(pa.array(self.ids)).to_pylist()

    def row(self, model: LanguageModel, precision: Precision) -> dict[str, float]:
        """Mean loss per token (nats) in all and by domain, under the keys of a log line."""
        losses = evaluate(model, self.batches(), self.domains, autocast=precision.dtype)
        key = f"{self.config.eval_split}/loss"
        by_domain = {f"{key}/{domain}": loss for domain, loss in losses.by_domain.items()}
        return {key: losses.mean, **by_domain}
