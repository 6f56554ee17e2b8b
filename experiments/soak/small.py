"""The run of seconds that is stopped and spoilt, and what it leaves when it is whole."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from inrun.files import read_json, write_json
from inrun.store import ValueStore
from inrun.train import RunFolder

STEPS, EVERY = 24, 4
WORDS = "let the sum of all primes be x and find that section four returns one for every court"


def write_documents(folder: Path, count: int = 240) -> None:
    """A file of short documents in three domains."""
    rng = random.Random(0)
    folder.mkdir(parents=True)
    with (folder / "documents.jsonl").open("w", encoding="utf-8") as file:
        for k in range(count):
            text = " ".join(rng.choices(WORDS.split(), k=rng.randint(3, 40)))
            file.write(json.dumps({"text": text, "domain": "abc"[k % 3]}) + "\n")


def settings(root: Path, name: str = "run") -> dict[str, Any]:
    """Of a GPT-2 of two layers, with values by two methods towards two targets."""
    targets = [{"name": "a", "domains": ["a"], "chunks": 3}, {"name": "all", "chunks": 4}]
    return {
        "name": name,
        "runs": str(root / "runs"),
        "data_root": str(root / "data"),
        "data": {
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
            "steps": STEPS,
            "batch_size": 8,
            "micro_batch": 4,
            "device": "cpu",
            "eval_every": 6,
            "eval_chunks": 2,
            "checkpoint_every": EVERY,
            "keep": 3,
        },
        "attribution": {
            "method": ["path", "first_order"],
            "targets": targets,
            "target_micro_batch": 3,
            "flush_every": 3,
        },
        "log": {"every": 1, "chunk_losses": True},
    }


def content(folder: Path) -> dict[str, Any]:
    """All that a run leaves, but for times: last tensors, tables of values, lines of the logs."""
    files = RunFolder(folder)
    last = files.checkpoints()[-1]
    found: dict[str, Any] = {"checkpoint": last.name}
    for name in ("model", "optimizer"):
        tensors = load_file(last / f"{name}.safetensors")
        found[name] = {key: tensor.numpy().tobytes() for key, tensor in tensors.items()}
    order = {"terms": "step, target, sample_id", "ledger": "step, target, method"}
    with files.values() as store:
        for table, by in {**order, "steps": "step", "samples": "sample_id"}.items():
            rows = store.sql(f"SELECT * FROM {table} ORDER BY {by}").to_pylist()
            found[table] = [{k: v for k, v in row.items() if "second" not in k} for row in rows]
    logged = [*files.log(), *files.chunk_losses()]
    found["log"] = [{k: v for k, v in row.items() if "second" not in k} for row in logged]
    return found


def copy(root: Path, to: Path) -> Path:
    """The run in `root`, its corpus with it, as one of its own in another place."""
    shutil.copytree(root, to)
    record = to / "runs" / "run" / "run.json"
    about = read_json(record)
    about["corpus"] = str(to / "data" / "corpora" / Path(about["corpus"]).name)
    about["config"] |= {key: settings(to)[key] for key in ("runs", "data_root")}
    about["config"]["data"]["path"] = str(to / "raw")
    write_json(record, about)
    return to


def answers(folder: Path) -> list[Any]:
    """What a value store says to a few questions."""
    with ValueStore(folder) as store:
        return [
            store.top(5, "all", "path").to_pylist(),
            store.by("domain", "a", "first_order").to_pylist(),
            store.ledger("a", "path"),
        ]
