"""Finding the original of a rewritten text among all training chunks.

Paper: Wang et al. 2025, section 5.3.3 and appendix E.5, table 2. Originals stand in the training
set, their rewritten texts are validation targets, one each; the rank of the original among all
chunks that were trained on says how well a method finds it. One run has all of them as targets; the
values are those measured in the run, summed over it, and the baselines look at its end. Texts:
`texts.py`.

  python -m experiments copyright                                    30 originals, 4 rewritings
  python -m experiments copyright texts.scripture=6 texts.prose=0    a few of them
  python -m experiments copyright texts.source=files texts.path=my.jsonl texts.variants=new.jsonl
                        your own documents; a row of new.jsonl: {original: doc_id, level, text}
  python -m experiments copyright scale=paper texts.source=files ...    GPT-2 124M: needs a GPU
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console

from experiments.artifacts import Outputs
from experiments.chunk_scores import all_scores
from experiments.copyright.originals import Original, TextsConfig
from experiments.copyright.report import report
from experiments.copyright.texts import Texts, write_texts
from experiments.frame import LanguageStudy, study
from inrun.baselines.ekfac import EKFACOptions
from inrun.baselines.language import LanguageRun
from inrun.data.errors import DataError
from inrun.train import RunConfig, TargetConfig, train_or_reuse


@dataclass(frozen=True, kw_only=True)
class CopyrightConfig(LanguageStudy):
    """The study. The targets of `attribution` are the rewritten texts, whatever stands there."""

    texts: TextsConfig
    """originals, and what they are hidden among"""
    influence: EKFACOptions = field(default_factory=EKFACOptions)
    """the influence function"""
    seed: int = 0
    """of weights, order and the random scores"""


@study("copyright", CopyrightConfig, report)
def measure(settings: CopyrightConfig, out: Outputs, console: Console) -> None:
    """The rank of every original, for each level and method."""
    texts = write_texts(settings.texts, settings.data, settings.data_root, out.folder / "texts")
    console.print(
        f"{len(texts.originals)} originals; {texts.dropped} documents that share words "
        f"with one left out, {texts.shared} kept",
        highlight=False,
    )
    folder = train_or_reuse(run_config(settings, texts, out.folder), console)
    console.print("ranks", highlight=False)
    rows = [{"scale": settings.scale, **row} for row in ranks(settings, texts, folder)]
    out.table("copyright-ranks", rows)


def run_config(settings: CopyrightConfig, texts: Texts, folder: Path) -> RunConfig:
    """The run: a target for each rewritten text."""
    targets = tuple(
        TargetConfig(
            target(original, level),
            domains=(original.name,),
            chunks=1,
            path=str(texts.variants(level)),
        )
        for level in texts.levels
        for original in texts.originals
        if level in original.variants
    )
    return settings.run_config(
        folder,
        "run",
        data=dataclasses.replace(settings.data, path=str(texts.training)),
        attribution=dataclasses.replace(settings.attribution, targets=targets),
        seed=settings.seed,
    )


def target(original: Original, level: str) -> str:
    """Name of the target that a rewritten text is."""
    return f"{original.name}/{level}"


def ranks(settings: CopyrightConfig, texts: Texts, folder: Path) -> Iterator[dict]:
    """For every rewritten text and method: the rank of the original's best chunk among all chunks
    that were trained on, 1 the best; ties at their mean.
    """
    run = LanguageRun(folder)
    at = {original.name: places(run, original) for original in texts.originals}
    for method, scores in all_scores(run, run.targets, settings.influence, settings.seed):
        for level in texts.levels:
            for original in texts.originals:
                if level not in original.variants:
                    continue
                values = scores[target(original, level)]
                yield {
                    "level": level,
                    "family": original.family,
                    "original": original.name,
                    "method": method,
                    "rank": min(rank(values, place) for place in at[original.name]),
                    "chunks": len(values),
                }


def places(run: LanguageRun, original: Original) -> list[int]:
    """Where in run.sample_ids the original's chunks are. Raises DataError: no chunk of it was
    trained on.
    """
    chunks = run.corpus.chunks
    holding = [
        k
        for k, documents in enumerate(chunks["doc_ids"].to_pylist())
        if original.doc_id in documents
    ]
    found = np.flatnonzero(np.isin(run.sample_ids, holding))
    if not len(found):
        raise DataError(
            f"no chunk of {original.doc_id!r} was trained on ({len(holding)} chunks in the "
            "training split hold it). Next: more train.steps, a smaller "
            "data.val_share, or another original"
        )
    return found.tolist()


def rank(values: np.ndarray, place: int) -> float:
    """1 + the number of larger values + half the number of other equal ones."""
    own = values[place]
    return float(1 + (values > own).sum() + 0.5 * ((values == own).sum() - 1))
