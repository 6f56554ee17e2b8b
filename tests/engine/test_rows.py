"""Whose row is it: rows that are not the samples in order, against each sample's share alone."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from inrun import Attributor
from inrun.rules.factors import SampleAxisError
from inrun.rules.layout import Owners
from tests.support import per_sample, rows_cases
from tests.support.rows_cases import Case, Experts, Frames, N, OneByOne, RepeatedBias, of_model

LR = 0.1

CASES = {
    "graphs": rows_cases.graphs,
    "pairs": rows_cases.pairs,
    "sequence first": rows_cases.sequence_first,
    "routed tokens": lambda: of_model(Experts(), 3, 5),
    "frames": lambda: of_model(Frames(), 3, 50),
    "repeated bias added": lambda: of_model(RepeatedBias(product=False), 3, 6),
    "repeated bias in a product": lambda: of_model(RepeatedBias(product=True), 3, 6),
    "one by one": lambda: of_model(OneByOne(), 3, 5),
}


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def case_of(name: str) -> Case:
    torch.manual_seed(0)
    return CASES[name]()


def values(case: Case, methods=("first_order",), **options) -> dict[str, torch.Tensor]:
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    optimizer = torch.optim.SGD(case.model.parameters(), lr=LR)
    attr = Attributor(case.model, optimizer, {"val": case.target}, list(methods), **options)
    forward = case.loss if options.get("route") in ("replay", "forward") else None
    with attr.batch(range(N), forward, rows=case.rows):
        case.loss().backward()
    optimizer.step()
    optimizer.zero_grad()
    case.model.load_state_dict(before)
    return {method: value for (method, _), value in attr.last_step.values.items()}


def one_by_one(case: Case, methods) -> dict[str, torch.Tensor]:
    """The same values from micro-batches of one sample, whose gradients need no rule."""
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    optimizer = torch.optim.SGD(case.model.parameters(), lr=LR)
    attr = Attributor(
        case.model, optimizer, {"val": case.target}, list(methods), route="whole", audit=None
    )
    for i in range(N):
        with attr.batch([i]):
            case.share(i).backward()
    optimizer.step()
    optimizer.zero_grad()
    case.model.load_state_dict(before)
    return {method: value for (method, _), value in attr.last_step.values.items()}


@pytest.mark.parametrize("route", ["tap", "fused", "forward"])
@pytest.mark.parametrize("name", CASES)
def test_each_samples_rows_are_found(name, route):
    case = case_of(name)
    truth, _ = per_sample.first_order(
        case.model, [lambda i=i: case.share(i) for i in range(N)], case.target, LR
    )
    if (name, route) == ("pairs", "forward"):  # its loss is no loss function of torch
        pytest.skip("no loss function of torch.nn.functional")
    assert per_sample.relative_error(values(case, route=route)["first_order"], truth) < 1e-12


@pytest.mark.parametrize("route", ["tap", "fused", "replay"])
@pytest.mark.parametrize("name", ["graphs", "sequence first", "routed tokens"])
def test_directions_known_after_the_backward_take_the_same_rows(name, route):
    case, methods = case_of(name), ("second_order", "path")
    truth = one_by_one(case, methods)
    for method, found in values(case, methods, route=route).items():
        assert per_sample.relative_error(found, truth[method]) < 1e-10, method


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_documents_in_a_packed_row_are_valued_one_by_one(name):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if name == "gpt2":
        none = {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
        ends = {"bos_token_id": 1, "eos_token_id": 1}
        config = transformers.GPT2Config(
            vocab_size=20, n_positions=32, n_embd=16, n_layer=2, n_head=2, **none, **ends
        )
        model = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.LlamaConfig(
            vocab_size=20,
            max_position_embeddings=32,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=24,
        )
        model = transformers.LlamaForCausalLM(config)
    case = rows_cases.packed(model.double(), 20)
    truth, _ = per_sample.first_order(
        case.model, [lambda i=i: case.share(i) for i in range(N)], case.target, LR
    )
    assert per_sample.relative_error(values(case)["first_order"], truth) < 1e-10


def test_rows_that_nobody_declared_are_refused_with_parameter_shape_and_ways_out():
    for name in ("graphs", "sequence first", "pairs"):
        case = case_of(name)
        case.rows = None
        with pytest.raises(SampleAxisError, match=r"rows of a tensor of shape .*rows=.*'whole'"):
            values(case)


def test_nested_tensors_are_refused_by_name():
    model = nn.Linear(5, 4)
    x = [torch.randn(k, 5) for k in (2, 6, 3, 1)]

    def loss():
        out = model(torch.nested.nested_tensor(x, layout=torch.jagged))
        return torch.stack([row.mean(0).square().mean() for row in out.unbind()]).mean()

    case = Case(model, loss, lambda i: loss(), lambda: model(x[0]).square().mean())
    with pytest.raises(SampleAxisError, match="nested"):
        values(case)


def test_a_batch_that_is_padded_inside_the_block_is_the_samples_own():
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    x, y = [torch.randn(k, 5) for k in (2, 6, 3, 1)], torch.randint(0, 3, (N,))

    def mean(samples):
        padded = torch.zeros(len(samples), 6, 5)
        for i, sample in enumerate(samples):
            padded[i, : len(sample)] = sample
        return model(padded).mean(1)

    share = lambda i: F.cross_entropy(mean(x[i : i + 1]), y[i : i + 1]) / N  # noqa: E731
    case = Case(
        model, lambda: F.cross_entropy(mean(x), y), share, lambda: model(x[1]).square().mean()
    )
    truth, _ = per_sample.first_order(
        model, [lambda i=i: share(i) for i in range(N)], case.target, LR
    )
    # the audit changes tensors with a row per sample from outside; here there is none
    found = values(case, audit=None)["first_order"]
    assert per_sample.relative_error(found, truth) < 1e-12
    with pytest.raises(SampleAxisError, match="not known which rows"):
        values(case)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([0.0, 1.0], "one integer per row"),
        ([[0, 1], [2, 3]], "one integer per row"),
        ([0, 1, 2, 4], "4 is none of them"),
        ([0, 1, 2, 2], "own no row"),
        ([0, 1, 2, 3, 3], "5 rows"),
    ],
)
def test_declared_rows_that_cannot_be_meant_are_refused(rows, message):
    case = case_of("graphs")
    case.rows = torch.tensor(rows)
    with pytest.raises(ValueError, match=message):
        values(case)


def test_wrong_rows_are_refused_by_the_audit():
    case = case_of("graphs")
    case.rows = case.rows.roll(1)
    with pytest.raises((ValueError, RuntimeError), match="rows"):
        values(case)


def test_compiled_models_take_no_rows():
    case = case_of("graphs")
    with pytest.raises(ValueError, match="not rows="):
        values(case, route="compiled")


def test_owners_know_a_regular_order():
    assert Owners.of(3, torch.tensor([0, 0, 1, 1, 2, 2])) is Owners.regular(3, 6, 2)
    assert Owners.of(3, torch.tensor([0, 1, 2, 0, 1, 2])) is Owners.regular(3, 6, 1)
    odd = Owners.of(3, torch.tensor([2, 0, 0, 1, 0]))
    assert odd.inner is None
    assert odd.rows(0, torch.device("cpu")).tolist() == [1, 2, 4]
    assert odd.sums(torch.arange(5.0)[:, None]).flatten().tolist() == [7.0, 3.0, 0.0]
