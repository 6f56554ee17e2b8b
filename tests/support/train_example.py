"""A small corpus from local files, a small GPT-2 on it, and what a run left behind, for the tests
of the trainer.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from inrun.store import ValueStore
from inrun.train import Run, RunConfig, loop

DOMAINS = ("ArXiv", "Github", "FreeLaw")
WORDS = {
    "ArXiv": "let the sum of all primes be x",
    "Github": "def f ( y ) : return y + 1",
    "FreeLaw": "the court finds that section 4",
}


def write_documents(folder: Path, count: int = 240, seed: int = 0) -> Path:
    """A folder with one .jsonl file of short documents in three domains."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    with (folder / "documents.jsonl").open("w", encoding="utf-8") as file:
        for k in range(count):
            domain = DOMAINS[k % 3]
            text = " ".join(rng.choice(WORDS[domain].split()) for _ in range(rng.randint(3, 40)))
            file.write(json.dumps({"text": text, "domain": domain}) + "\n")
    return folder


def settings(root: Path, name: str = "run", **changes) -> dict:
    """A config as plain values: 12 steps with a checkpoint at every fourth, values by two methods
    towards two targets, dropout.

    changes: "part.key" written as part__key, or a top-level key.
    """
    values = {
        "name": name,
        "runs": str(root / "runs"),
        "data_root": str(root / "data"),
        "seed": 1,
        "data": {
            "name": "test",
            "source": "files",
            "path": str(root / "raw"),
            "tokenizer": "bytes",
            "block_size": 32,
            "val_share": 0.2,
            "test_share": 0.1,
            "threads": 1,
        },
        "model": {
            "name": "gpt2",
            "preset": "tiny",
            "vocab_size": 320,
            "block_size": 32,
            "n_layer": 2,
            "n_head": 2,
            "d_model": 32,
            "dropout": 0.1,
        },
        "optim": {"name": "adamw", "lr": 3e-3, "min_lr": 3e-4, "warmup": 3, "clip": 0.5},
        "train": {
            "steps": 12,
            "batch_size": 8,
            "micro_batch": 4,
            "device": "cpu",
            "eval_every": 6,
            "eval_chunks": 2,
            "checkpoint_every": 4,
            "keep": 2,
        },
        "attribution": {
            "method": [{"kind": "path"}, {"kind": "first_order"}],
            "targets": [
                {"name": "law", "domains": ["FreeLaw"], "chunks": 3},
                {"name": "all", "chunks": 4},
            ],
            "target_micro_batch": 3,
            "flush_every": 3,
        },
        "log": {"every": 2, "chunk_losses": True},
    }
    for key, value in changes.items():
        part, _, inner = key.partition("__")
        if inner:
            values[part][inner] = value
        else:
            values[part] = value
    return values


def config(root: Path, name: str = "run", **changes) -> RunConfig:
    return RunConfig.from_mapping(settings(root, name, **changes))


def weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of the run's last checkpoint, optimizer's included."""
    last = sorted((folder / "checkpoints").glob("step-*"))[-1]
    return {**load_file(last / "model.safetensors"), **load_file(last / "optimizer.safetensors")}


def tables(folder: Path) -> dict[str, list[dict]]:
    """All rows of the value tables, in order."""
    with ValueStore(folder / "values") as store:
        order = {
            "terms": "step, target, sample_id",
            "ledger": "step, target, method",
            "steps": "step",
            "samples": "sample_id",
        }
        return {
            name: store.sql(f"SELECT * FROM {name} ORDER BY {by}").to_pylist()
            for name, by in order.items()
        }


def lines(folder: Path, name: str = "log.jsonl") -> list[dict]:
    """Rows of a log, without the ones' times."""
    rows = [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if "second" not in key} for row in rows]


def in_step(monkeypatch, run: Run, step: int, act: Callable[[], object]) -> None:
    """`act` is called in the middle of that step of `run`, before the weights move."""
    clip = loop.clip_gradients

    def clipped(*arguments):
        if run.step == step:
            act()
        return clip(*arguments)

    monkeypatch.setattr(loop, "clip_gradients", clipped)
