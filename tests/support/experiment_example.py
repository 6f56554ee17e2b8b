"""Small settings for the commands of `python -m experiments`; for tests/experiments and
tests/train/test_processes.
"""

from pathlib import Path

#: corpus and model of seconds, on the documents of `train_example.write_documents`
CORPUS = (
    "data=files", "data.name=small", "data.tokenizer=bytes", "data.block_size=32",
    "data.domains=[]",
    "data.max_bytes_per_domain=0", "data.val_share=0.2", "data.test_share=0.2", "data.noise=0.2",
)  # fmt: skip
MODEL = (
    "model.vocab_size=320", "model.block_size=32", "model.n_layer=1", "model.n_head=2",
    "model.d_model=16", "train.device=cpu", "train.eval_chunks=2",
)  # fmt: skip


def places(root: Path, runs: Path | None = None) -> list[str]:
    """Where documents, corpora and runs lie: in `root`; runs elsewhere if given."""
    return [f"runs={runs or root / 'runs'}", f"data_root={root}/data", f"data.path={root}/raw"]


def small(root: Path, name: str) -> list[str]:
    """Settings of `pretrain` for a run of seconds on local documents."""
    return [
        *places(root), *CORPUS, *MODEL, "model.d_model=32", f"name={name}", "train.steps=8",
        "train.batch_size=8", "train.eval_every=0", "optim.warmup=2", "log.every=4",
    ]  # fmt: skip
