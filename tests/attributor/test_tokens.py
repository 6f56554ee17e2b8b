"""Values of tokens, of packed documents, of samples without a label."""

import torch

from inrun import Attributor
from tests.support import per_sample
from tests.support.small_models import TOKENS, loss_of, rows, small


def test_token_values_add_up_to_the_samples_value_and_agree_with_the_rules():
    model, train, val = small("pythia"), rows(4, 1), rows(2, 2)
    train[1, 7:] = train[1, 6]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    attr = Attributor(
        model,
        optimizer,
        {"val": lambda: loss_of(model, val, 0.1)},
        ["first_order", "path"],
        per_token=True,
    )
    for _ in range(2):
        for ids in ([0, 1, 2], [3]):
            with attr.batch(ids, forward=lambda ids=ids: loss_of(model, train[ids], 0.02)):
                loss_of(model, train[ids], 0.02).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        optimizer.step()
        optimizer.zero_grad()
    for method in ("first_order", "path"):
        tokens = torch.cat([rows.sum(1) for rows in attr.last_step.tokens[method, "val"]])
        assert per_sample.relative_error(tokens, attr.last_step.values[method, "val"]) < 1e-10
    assert attr.last_step.tokens["path", "val"][0].shape == (3, TOKENS - 1)


def test_token_values_are_the_values_of_the_tokens_own_loss_terms():
    model, train, val = small("gpt2"), rows(2, 1), rows(2, 2)
    lr = 0.2
    targets = train[:, 1:].clone()
    targets[0, 3] = -100
    attr = Attributor(
        model,
        torch.optim.SGD(model.parameters(), lr=lr),
        {"val": lambda: loss_of(model, val, 0.1)},
        "first_order",
        per_token=True,
    )

    def forward():
        return model.loss(train[:, :-1], targets) / 20

    with attr.batch([0, 1], forward=forward):
        forward().backward()

    V = per_sample.gradients(model, loss_of(model, val, 0.1))
    truth = torch.zeros(2, TOKENS - 1, dtype=torch.float64)
    for i in range(2):
        for t in range(TOKENS - 1):
            if targets[i, t] != -100:
                term = model.loss(train[:, :-1], targets, reduction="none")[i, t] / 20
                truth[i, t] = lr * per_sample.dot(per_sample.gradients(model, term), V)
    attr.optimizers[0].step()
    tokens = attr.last_step.tokens["first_order", "val"][0]
    assert per_sample.relative_error(tokens, truth) < 1e-10
    assert tokens[0, 3] == 0


def test_documents_packed_in_a_row_without_leaking_context_are_valued_as_if_alone():
    model, val = small("gpt2"), rows(2, 2)
    row = rows(1, 5)
    documents = torch.tensor([[0] * 5 + [1] * (TOKENS - 6)])
    lr = 0.2

    def forward():
        return model.loss(row[:, :-1], row[:, 1:], document_ids=documents) / 12

    attr = Attributor(
        model,
        torch.optim.SGD(model.parameters(), lr=lr),
        {"val": lambda: loss_of(model, val, 0.1)},
        "first_order",
        per_token=True,
    )
    V = per_sample.gradients(model, loss_of(model, val, 0.1))
    truth = []
    for document in (0, 1):
        terms = (
            model.loss(row[:, :-1], row[:, 1:], document_ids=documents, reduction="none")[
                documents == document
            ].sum()
            / 12
        )
        truth.append(lr * per_sample.dot(per_sample.gradients(model, terms), V))
    with attr.batch([0], forward=forward):
        forward().backward()
    attr.optimizers[0].step()
    tokens = attr.last_step.tokens["first_order", "val"][0]
    got = torch.stack([tokens[documents == document].sum() for document in (0, 1)])
    assert per_sample.relative_error(got, torch.tensor(truth, dtype=torch.float64)) < 1e-10


def test_an_all_masked_sample_has_value_zero():
    model, train, val = small("gpt2"), rows(3, 1), rows(2, 2)
    targets = train[:, 1:].clone()
    targets[1] = -100
    attr = Attributor(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        {"val": lambda: loss_of(model, val, 0.1)},
        ["first_order", "path"],
    )
    with attr.batch(range(3)):
        (model.loss(train[:, :-1], targets) / 24).backward()
    attr.optimizers[0].step()
    for values in attr.last_step.values.values():
        assert values[1] == 0
        assert (values[[0, 2]] != 0).all()
