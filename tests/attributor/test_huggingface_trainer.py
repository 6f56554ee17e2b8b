"""A Hugging Face Trainer with values: against per-sample gradients, and a run that goes on from a
checkpoint.
"""

import pytest
import torch
import torch.nn.functional as F

import inrun
from inrun.methods import FirstOrder
from tests.support import per_sample

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
from inrun.integrations.huggingface import ValuedTrainer  # noqa: E402

T, VOCAB, LR = 9, 40, 0.05


def rows(n: int, seed: int, first: int | None = None) -> list[dict]:
    tokens = torch.randint(0, VOCAB, (n, T), generator=torch.Generator().manual_seed(seed)).tolist()
    ids = {} if first is None else {"id": first}
    return [
        {"input_ids": row, "labels": row, **{key: start + k for key, start in ids.items()}}
        for k, row in enumerate(tokens)
    ]


class Rows(torch.utils.data.Dataset):
    def __init__(self, given: list[dict]):
        self.given = given

    def __len__(self):
        return len(self.given)

    def __getitem__(self, at):
        return dict(self.given[at])


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
    )


def arguments(folder, **changes):
    given = {"max_steps": 4, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    given |= {"learning_rate": LR, "lr_scheduler_type": "constant", "optim": "sgd", "seed": 3}
    given |= {"max_grad_norm": 0.5, "report_to": [], "use_cpu": True, "save_strategy": "no"}
    given |= {"disable_tqdm": True, "logging_strategy": "no"}
    return transformers.TrainingArguments(output_dir=str(folder), **{**given, **changes})


def trainer(folder, methods=("path",), **changes) -> ValuedTrainer:
    return ValuedTrainer(
        model(),
        arguments(folder, **changes),
        train_dataset=Rows(rows(24, 1, first=100)),
        targets={"val": Rows(rows(3, 2))},
        method=list(methods),
        store=folder / "values",
    )


def test_values_are_dot_products_with_the_clipped_share_of_each_sample(tmp_path):
    valued = trainer(tmp_path, [FirstOrder(state="current"), inrun.Path(nodes=4)], max_steps=1)
    for module in valued.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    before = {name: p.detach().clone() for name, p in valued.model.named_parameters()}
    valued.train()
    ids = valued.attributor.last_step.ids
    fresh = model().eval()
    fresh.load_state_dict({**fresh.state_dict(), **before})
    tokens = torch.tensor([row["input_ids"] for row in rows(24, 1)])[ids - 100]

    def loss(batch):
        logits = fresh(batch).logits[:, :-1]
        return F.cross_entropy(logits.reshape(-1, VOCAB), batch[:, 1:].reshape(-1), reduction="sum")

    count = len(ids) * (T - 1)
    full = per_sample.gradients(fresh, loss(tokens) / count)
    clip = min(1.0, 0.5 / float(sum(g.norm() ** 2 for g in full.values()) ** 0.5))
    val = torch.tensor([row["input_ids"] for row in rows(3, 2)])
    truth, _ = per_sample.first_order(
        fresh,
        [lambda i=i: clip * loss(tokens[i : i + 1]) / count for i in range(len(ids))],
        lambda: loss(val) / (3 * (T - 1)),
        LR,
    )
    assert len(ids) == 4
    assert abs(valued.values.ledger("val", "path").gap) < 0.01
    assert (
        per_sample.relative_error(valued.attributor.last_step.values["first_order", "val"], truth)
        < 1e-4
    )


def test_names_as_ids_give_the_same_values_and_stand_in_the_store(tmp_path):
    found = []
    for name in (int, "row {}".format):
        valued = trainer(tmp_path / str(len(found)), max_steps=3)
        valued.train_dataset.given = [
            {**row, "id": name(row["id"])} for row in valued.train_dataset.given
        ]
        valued.train()
        key = "sample_id" if name is int else "id"
        found.append(
            {
                name(row[key]) if name is int else row[key]: row["value"]
                for row in valued.values.values("val").to_pylist()
            }
        )
    assert {f"row {number}": value for number, value in found[0].items()} == found[1]


def test_the_trained_weights_are_those_of_a_plain_trainer(tmp_path):
    valued = trainer(tmp_path / "valued", optim="adamw_torch")
    valued.train()
    plain = transformers.Trainer(
        model(), arguments(tmp_path / "plain", optim="adamw_torch"), train_dataset=Rows(rows(24, 1))
    )
    plain.train()
    for ours, theirs in zip(valued.model.parameters(), plain.model.parameters()):
        assert torch.equal(ours, theirs)
    assert len(valued.values.sql("SELECT * FROM terms")) == 16


def test_a_run_goes_on_from_its_checkpoint_with_the_same_tables(tmp_path):
    changes = {"optim": "adamw_torch", "save_strategy": "steps", "save_steps": 2}
    whole = trainer(tmp_path / "whole", **changes)
    whole.train()
    trainer(
        tmp_path / "cut", **{**changes, "max_steps": 3}
    ).train()  # the step after the checkpoint is lost
    again = trainer(tmp_path / "cut", **changes)
    again.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-2"))
    query = "SELECT * FROM terms ORDER BY step, sample_id"
    assert again.values.sql(query).to_pylist() == whole.values.sql(query).to_pylist()


def test_a_checkpoint_without_values_is_refused(tmp_path):
    changes = {"save_strategy": "steps", "save_steps": 2}
    transformers.Trainer(
        model(), arguments(tmp_path, **changes), train_dataset=Rows(rows(24, 1))
    ).train()
    with pytest.raises(ValueError, match="checkpoint-2 was saved without values"):
        trainer(tmp_path, **changes).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_what_is_missing_is_said(tmp_path):
    without = trainer(tmp_path)
    without.train_dataset = Rows(rows(24, 1))
    with pytest.raises(ValueError, match="no 'id': give every row"):
        without.train()
    with pytest.raises(ValueError, match="route='replay': the Trainer runs a batch once"):
        ValuedTrainer(
            model(),
            arguments(tmp_path),
            targets={"val": Rows(rows(1, 2))},
            method="path",
            attribution={"route": "replay"},
        )
