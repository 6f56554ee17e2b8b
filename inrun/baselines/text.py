"""Search: what a reader without gradients would call similar. BM25 over words, and nearest
neighbours among the trained model's own hidden states.

The value of a chunk is its mean similarity to the samples of the target.
"""

import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from inrun.baselines.registry import BaselineError, baseline, value_table
from inrun.baselines.runs import Featured, FeaturedRun, Textual, TextualRun

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class BM25Options:
    """As in the paper's table (E.5)."""

    k1: float = 1.5
    "Where repeated words saturate."
    b: float = 0.75
    "How much long chunks are held back."


@dataclass(frozen=True)
class EmbeddingOptions:
    """How features are made comparable."""

    center: bool = True
    "Take the mean over the training chunks off first: hidden states share a large component."


def words(text: str) -> list[str]:
    """Lower-case runs of letters and digits, nothing left out: stop words get their small weight
    from BM25 itself.
    """
    return _WORD.findall(text.lower())


@baseline("bm25", BM25Options, needs=(Textual,))
def bm25(run: TextualRun, target: str, options: BM25Options) -> pa.Table:
    """BM25 of every chunk with the target's text as the query (Robertson and Zaragoza 2009,
    Lucene's weights), by the package bm25s.

    A word that stands several times in the query counts several times.
    """
    return value_table(run, BM25Index(run, options).scores(run.target_texts(target)))


class BM25Index:
    """The training chunks, indexed once for many queries."""

    def __init__(self, run: TextualRun, options: BM25Options):
        try:
            import bm25s
        except ImportError as error:
            raise BaselineError(
                "bm25 needs the package bm25s. Next: pip install 'inrun[baselines]' (or bm25s)"
            ) from error
        self._index = bm25s.BM25(k1=options.k1, b=options.b, method="lucene")
        self._index.index([words(text) for text in run.texts(run.sample_ids)], show_progress=False)

    def scores(self, queries: list[str]) -> np.ndarray:
        """Mean over the queries: float64 [n]."""
        found = [self._index.get_scores(words(query)) for query in queries]
        return np.mean(np.asarray(found, np.float64), axis=0)


@baseline("embedding", EmbeddingOptions, needs=(Featured,))
def embedding(run: FeaturedRun, target: str, options: EmbeddingOptions) -> pa.Table:
    """Cosine of what enters the last layer, under the final weights."""
    return value_table(run, EmbeddingIndex(run, options).scores(target))


class EmbeddingIndex:
    """The training chunks' features, for many targets."""

    def __init__(self, run: FeaturedRun, options: EmbeddingOptions):
        self._run, self._model = run, run.model()
        with torch.no_grad():
            rows = run.features(self._model, run.sample_ids).double()
        self._mean = rows.mean(0) if options.center else torch.zeros_like(rows[0])
        self._rows = torch.nn.functional.normalize(rows - self._mean, dim=1)

    def scores(self, target: str) -> np.ndarray:
        """Mean cosine with the target's samples: float64 [n]."""
        with torch.no_grad():
            queries = self._run.target_features(self._model, target).double()
        queries = torch.nn.functional.normalize(queries - self._mean, dim=1)
        return (self._rows @ queries.T).mean(1).numpy()
