"""Values in a Hugging Face Trainer (extra `hf`): which sequences taught which target.

python examples/02_hugging_face.py
"""

import tempfile

import torch
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

from inrun.integrations.huggingface import ValuedTrainer

torch.manual_seed(0)


def sequences(kind: str, count: int) -> list[list[int]]:
    """Token sequences that count up or down from a random start, modulo 20."""
    step = 1 if kind == "up" else -1
    starts = torch.randint(0, 20, (count,)).tolist()
    return [[(start + step * t) % 20 for t in range(12)] for start in starts]


def rows(kinds: list[str], count: int) -> list[dict]:
    tokens = [row for kind in kinds for row in sequences(kind, count)]
    # the training set has a column of integer ids
    return [{"id": k, "input_ids": row, "labels": row} for k, row in enumerate(tokens)]


folder = tempfile.mkdtemp()
sizes = {"vocab_size": 20, "n_positions": 12, "n_embd": 32, "n_layer": 2, "n_head": 2}
model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
arguments = TrainingArguments(
    folder,
    max_steps=60,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=2,
    learning_rate=3e-3,
    report_to=[],
    save_strategy="no",
    logging_strategy="no",
    disable_tqdm=True,
    use_cpu=True,
)
trainer = ValuedTrainer(
    model,
    arguments,
    train_dataset=rows(["up", "down"], 40),  # samples 0 to 39 count up, 40 to 79 down
    targets={"up": rows(["up"], 8)},
    method="path",
    store=f"{folder}/values",
)
trainer.train()

best = [row["sample_id"] for row in trainer.values.top(20).to_pylist()]
print(f"of the 20 best for counting up, {sum(k < 40 for k in best)} count up")
