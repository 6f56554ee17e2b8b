"""The audit refuses by name what mixes samples: planted faults of the engine, losses that compare
samples, rows that are another sample's; and when it is made.
"""

import itertools
import json
import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from inrun import Attributor, Audit, Processes
from inrun.config import ConfigError
from inrun.ghost import MixedSamplesError
from inrun.ghost.audit_data import RowOwners, changed_ids, changed_numbers, subsets
from inrun.rules.factors import SampleAxisError
from tests.support.audit_case import N, contrastive, net, one_step
from tests.support.mutants.base import wrap
from tests.support.together import together


@pytest.fixture(autouse=True)
def _numbers():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# -- which samples are changed together


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 7, 10, 20, 64])
def test_for_every_ordered_pair_of_samples_some_test_changes_the_first_and_not_the_second(n):
    tests = subsets(n)
    assert all((tests[:, i] & ~tests[:, j]).any() for i, j in itertools.permutations(range(n), 2))


def test_groups_of_samples_are_told_apart_with_fewer_tests_and_every_sample_is_changed():
    tests = subsets(64, 6)
    assert len(tests) == 4 < len(subsets(64))
    assert tests.any(0).all()
    assert len({tuple(column) for column in tests.T.tolist()}) == 6


def test_data_of_some_samples_are_changed_and_no_others():
    owners, samples = (
        RowOwners(3, torch.tensor([0, 2, 2, 1, 0])),
        torch.tensor([True, False, False]),
    )
    x = torch.randn(5, 2)
    moved = changed_numbers(x, owners, samples, 0) != x
    assert moved.any(1).tolist() == [True, False, False, False, True]
    ids = torch.tensor([[7, 1, 2, 3, 8]])
    assert changed_ids(ids, owners, samples, False).tolist() == [[8, 1, 2, 3, 7]]
    one_each = torch.tensor([4, 5, 6])
    assert changed_ids(one_each, RowOwners(3), samples, False).tolist() == [6, 5, 6]
    zeros_and_masks = torch.tensor([[0.0, -1e9], [0.0, -torch.inf], [0.0, 1e30]])
    same = changed_numbers(zeros_and_masks, RowOwners(3), torch.tensor([True] * 3), 0)
    assert torch.equal(same, zeros_and_masks)


# -- what is refused


@pytest.mark.parametrize("route", ["tap", "fused", "forward", "compiled"])
def test_a_contrastive_loss_is_refused_on_every_route(route):
    model = net()
    with pytest.raises(MixedSamplesError, match=r"(?s)own data alone.*in-batch negatives"):
        one_step(model, contrastive(model), method="first_order", route=route)


def test_a_contrastive_loss_is_refused_on_the_route_that_runs_it_again():
    model = net()
    with pytest.raises(MixedSamplesError, match="own data alone"):
        one_step(model, contrastive(model), method="path", route="replay")


def test_without_the_audit_a_contrastive_loss_is_valued_without_a_word():
    model = net()
    attr = one_step(model, contrastive(model), audit=False)
    assert attr.last["val"].shape == (N,)


def test_a_penalty_across_samples_is_refused():
    model, x, y = net(), torch.randn(N, 5), torch.randn(N, 3)
    with pytest.raises(MixedSamplesError, match="penalty across samples"):
        one_step(model, lambda: F.mse_loss(model(x), y) - model(x).var(0).sum())


@pytest.mark.parametrize(
    "mixed",
    [
        pytest.param(lambda d: d.roll(1, -1), id="the sample before it"),
        pytest.param(lambda d: d.flip(-1), id="the last sample's to the first"),
        pytest.param(lambda d: d.mean(-1, keepdim=True).expand_as(d), id="the mean of all"),
    ],
)
def test_an_engine_that_gives_a_sample_another_ones_part_is_refused(monkeypatch, mixed):
    """The balance sees nothing: the sum is the same."""
    wrap(monkeypatch, "Outer.dots", lambda original, self, V: mixed(original(self, V)))
    model, x = net(), torch.randn(N, 5)
    one_step(model, lambda: model(x).square().mean(), audit=False)
    with pytest.raises(MixedSamplesError, match=r"0\.weight"):
        one_step(model, lambda: model(x).square().mean())


def test_two_random_halves_would_miss_what_all_ordered_pairs_find(monkeypatch):
    """Sample 3 spoils value 2, and sample 1 value 0; halves {2, 3} and {0, 2}."""

    def mixing(original, self, V):
        d = original(self, V)
        d[..., 2] += 0.5 * d[..., 3]
        d[..., 0] += 0.5 * d[..., 1]
        d[..., 1::2] *= 0.5
        return d

    wrap(monkeypatch, "Outer.dots", mixing)
    model, x = net(), torch.randn(4, 5)
    with monkeypatch.context() as patch:
        halves = torch.tensor([[False, False, True, True], [True, False, True, False]])
        patch.setattr("inrun.ghost.audit.STILL", -1.0)  # sample 1 is never changed
        patch.setattr("inrun.ghost.audit.subsets", lambda n, groups: halves)
        one_step(model, lambda: model(x).square().mean(), n=4)
    with pytest.raises(MixedSamplesError, match=r"0\.weight"):
        one_step(model, lambda: model(x).square().mean(), n=4)


def test_a_fault_of_one_parameter_is_named_though_its_part_of_the_value_is_small(monkeypatch):
    def mixing(original, self, V):
        d = original(self, V)
        return d.roll(1, -1) if self.shape == (3, 7) else d

    wrap(monkeypatch, "Outer.dots", mixing)
    model, x = net(), torch.randn(N, 5)
    with torch.no_grad():
        model[2].weight.mul_(1e6)  # the other layer's parts are a million times larger
    with pytest.raises(MixedSamplesError, match=r"parameter 2\.weight: "):
        one_step(model, lambda: model(x).square().mean())


def test_samples_along_axis_one_are_refused_though_the_length_is_a_multiple():
    embed, head = nn.Embedding(11, 5), nn.Linear(5, 3)
    model = nn.ModuleList([embed, head])
    x, y = torch.randint(0, 11, (8, 4)), torch.randint(0, 3, (4,))
    loss = lambda: F.cross_entropy(head(embed(x).tanh().mean(0)), y)  # noqa: E731
    with pytest.raises((SampleAxisError, MixedSamplesError), match="batch_first"):
        one_step(model, loss, n=4, val=loss)


def test_nodes_of_graphs_of_unequal_sizes_are_refused_though_they_divide():
    of = torch.repeat_interleave(torch.arange(4), torch.tensor([3, 5, 2, 6]))
    model, x, y = net(), torch.randn(16, 5), torch.randn(4, 3)
    loss = lambda: F.mse_loss(torch.zeros(4, 3).index_add(0, of, model(x)), y)  # noqa: E731
    with pytest.raises((SampleAxisError, MixedSamplesError), match="rows="):
        one_step(model, loss, n=4)


# -- when


def test_only_the_first_batch_is_run_again(caplog):
    model, x = net(), torch.randn(N, 5)
    with caplog.at_level(logging.INFO, "inrun"):
        one_step(model, lambda: model(x).square().mean(), steps=4)
    assert caplog.text.count("audited") == 1


def test_a_parameter_that_is_used_later_is_audited_in_the_batch_after(monkeypatch, caplog):
    class Later(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.calls = net(), net(), 0

        def forward(self, x):
            self.calls += 1
            return self.first(x) + (self.second(x) if self.calls > 2 else 0.0)

    model, x = Later(), torch.randn(N, 5)
    val = lambda: model.first(torch.ones(2, 5)).square().mean()  # noqa: E731
    with caplog.at_level(logging.INFO, "inrun"):
        one_step(model, lambda: model(x).square().mean(), steps=5, val=val)
    assert [r.getMessage()[:7] for r in caplog.records if "audited" in r.getMessage()] == [
        "step 0:",
        "step 3:",
    ]


def test_a_batch_of_one_sample_has_nothing_to_audit(caplog):
    model, x = net(), torch.randn(1, 5)
    with caplog.at_level(logging.INFO, "inrun"):
        one_step(model, lambda: model(x).square().mean(), n=1)
    assert "audit" not in caplog.text


@pytest.mark.parametrize(("asked", "n"), [(True, N), (Audit(groups=3), N), (False, N), (True, 1)])
def test_a_store_says_whether_its_run_was_audited(asked, n, tmp_path):
    model, x = net(), torch.randn(n, 5)
    loss = lambda: model(x).square().mean()  # noqa: E731
    store = one_step(model, loss, n=n, audit=asked, store=tmp_path / "values").close()
    assert store.audited == bool(asked)
    assert any("not audited" in line for line in store.said()) != bool(asked)
    assert store.sql("SELECT audited FROM steps")["audited"].to_pylist() == [n if asked else 0]


def test_a_resumed_run_is_not_audited_again(tmp_path, caplog):
    model, x = net(), torch.randn(N, 5)
    loss = lambda: model(x).square().mean()  # noqa: E731
    state = one_step(model, loss, store=tmp_path / "values").state_dict()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attr = Attributor(model, optimizer, {"val": loss}, store=tmp_path / "values")
    attr.load_state_dict(json.loads(json.dumps(state)))
    with caplog.at_level(logging.INFO, "inrun"), attr.batch(range(N)):
        loss().backward()
    assert "audited" not in caplog.text


def test_groups_are_two_or_more():
    with pytest.raises(ConfigError, match="audit=False"):
        Audit(groups=1)
    assert Audit.from_config({"groups": 4}) == Audit(groups=4)
    assert Audit.from_config(False) is None


def _refused_in_one(rank: int) -> str:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    model = net()
    x = torch.randn(N, 5)
    loss = contrastive(model) if rank else lambda: model(x).square().mean()
    try:
        one_step(model, loss, processes=Processes(torch.distributed.group.WORLD))
    except MixedSamplesError as error:
        return str(error)
    return "nothing"


def test_processes_refuse_together():
    other, own = together(2, _refused_in_one)
    assert "another process" in other
    assert "own data alone" in own
