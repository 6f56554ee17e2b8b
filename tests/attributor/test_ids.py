"""Ids of any plain type: integers as they are, names by numbers that the store can tell apart."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from inrun import Attributor, Recording, ValueStore
from inrun.attributor import NonFiniteError
from inrun.attributor.ids import ids_of
from tests.support.regression import LR, Case, N
from tests.support.together import together


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["b", "a", "b"], ["b", "a", "b"]),
        ([b"b", b"\x00"], [b"b", b"\x00"]),
        (["a\x00", "a"], ["a\x00", "a"]),
        (np.array(["b", "a"]), ["b", "a"]),
        (np.array([b"b", b"a"]), [b"b", b"a"]),
        (np.array(["b", "a"], object), ["b", "a"]),
        (list(np.array(["b", "a"])), ["b", "a"]),
        (range(3), [0, 1, 2]),
        ([np.int32(1), 2, -(2**63)], [1, 2, -(2**63)]),
        (torch.tensor([3, 4], dtype=torch.int32), [3, 4]),
        (list(torch.tensor([3, 4])), [3, 4]),
        (np.array([2**63 - 1], np.uint64), [2**63 - 1]),
    ],
)
def test_ids_are_kept_as_they_were_given(given, kept):
    found = ids_of(given)
    assert found.tolist() == kept
    assert found.dtype == (np.int64 if isinstance(kept[0], int) else object)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([2**63 + 5, 7], r"int64, 9223372036854775813 is past 2\^63 - 1.*id >> 1.*str\(id\)"),
        ([2**70, 7], r"is past 2\^63 - 1"),
        ([-(2**63) - 1, 7], r"is past -2\^63"),
        (np.array([2**63 + 5, 7], np.uint64), r"9223372036854775813 is past"),
        (np.array([2**63 + 5, 7.0]), "not float64, which tells large integers no longer apart"),
        ([0.5, 1.0], "not float"),
        ([1, "a"], "all of one type, not int, str"),
        (["a", b"a"], "all of one type, not bytes, str"),
        ([True, False], "not bool"),
        ([(1, 2), (3, 4)], r"not tuple.*str\(id\)"),
        ([None], "not NoneType"),
        ([], "not none"),
        ("abc", "one id per sample, in a list"),
        (7, "not int64 of shape"),
        (torch.zeros(2, 2, dtype=torch.long), r"shape \(2, 2\)"),
    ],
)
def test_what_is_no_id_is_refused_in_the_words_of_what_was_given(given, says):
    with pytest.raises(ValueError, match=says):
        ids_of(given)


def train(folder, names: list[list], samples=None, resume=None) -> tuple[Attributor, list]:
    """Steps with these ids; values in their order."""
    case = Case()
    optimizer = case.sgd()
    recording = Recording(folder, samples=samples, flush_every=1)
    attr = Attributor(case.model, optimizer, {"val": case.target}, "first_order", store=recording)
    if resume is not None:
        attr.load_state_dict(resume)
    values = []
    for ids in names:
        with attr.batch(ids):
            case.loss().backward()
        optimizer.step()
        optimizer.zero_grad()
        values += attr.last["val"].tolist()
        assert attr.last_step.ids.tolist() == list(ids)
    return attr, values


STEPS = [["d", "b", "a", "c"], ["a", "e", "b", "f"]]


@pytest.mark.parametrize("encode", [str, str.encode])
def test_names_come_back_from_the_store_with_their_values(tmp_path, encode):
    steps = [[encode(name) for name in ids] for ids in STEPS]
    attr, values = train(tmp_path / "values", steps)
    expected: dict = {}
    for name, value in zip([*steps[0], *steps[1]], values):
        expected[name] = expected.get(name, 0.0) + value
    with attr.close() as store:
        rows = store.values().to_pylist()
        assert {row["id"]: row["value"] for row in rows} == pytest.approx(expected, rel=1e-6)
        assert [row["sample_id"] for row in rows] == list(range(6))
        assert store.top(1).to_pylist()[0]["id"] == max(expected, key=expected.get)
        assert store.by("id").num_rows == 6
        shown = store.sql("SELECT id, step FROM terms JOIN samples USING (sample_id)").to_pylist()
        assert {(row["id"], row["step"]) for row in shown} == {
            (name, step) for step, ids in enumerate(steps) for name in ids
        }


def test_a_run_that_is_resumed_gives_the_names_the_numbers_that_they_have(tmp_path):
    whole, _ = train(tmp_path / "whole", [*STEPS, ["g", "a", "h", "b"]])
    with whole.close() as store:
        expected = store.values().to_pylist()
    first, _ = train(tmp_path / "parts", STEPS[:1])
    state = first.state_dict()
    weights = {k: v.clone() for k, v in first._setting.model.state_dict().items()}
    # what came after the checkpoint is dropped, its names with it
    case, lost = Case(), ["z", "y", "x", "w"]
    with first.batch(lost):
        case.loss().backward()
    first.__exit__(RuntimeError, RuntimeError(), None)

    case = Case()
    case.model.load_state_dict(weights)
    optimizer = case.sgd()
    again = Attributor(
        case.model, optimizer, {"val": case.target}, "first_order", store=tmp_path / "parts"
    )
    again.load_state_dict(state)
    for ids in [STEPS[1], ["g", "a", "h", "b"]]:
        with again.batch(ids):
            case.loss().backward()
        optimizer.step()
        optimizer.zero_grad()
    with again.close() as store:
        found = store.values().to_pylist()
    assert [(r["sample_id"], r["id"], r["uses"]) for r in found] == [
        (r["sample_id"], r["id"], r["uses"]) for r in expected
    ]
    assert [r["value"] for r in found] == pytest.approx([r["value"] for r in expected], rel=1e-5)


def test_a_table_of_samples_is_joined_by_name(tmp_path):
    table = pa.table({"sample_id": ["c", "b", "a"], "domain": ["x", "y", "x"]})
    attr, _ = train(tmp_path / "values", STEPS, samples=table)
    with attr.close() as store:
        rows = {row["id"]: row for row in store.values().to_pylist()}
        domains = store.by("domain").to_pylist()
    assert {name: row["domain"] for name, row in rows.items()} == {
        "a": "x",
        "b": "y",
        "c": "x",
        **dict.fromkeys("def"),
    }
    assert [rows[name]["sample_id"] for name in "cbadef"] == list(range(6))
    assert {row["domain"]: row["chunks"] for row in domains} == {"x": 2, "y": 1, None: 3}


def test_ids_of_two_types_in_a_run_are_refused_before_the_step(tmp_path):
    attr, _ = train(tmp_path / "values", STEPS[:1])
    with (
        pytest.raises(ValueError, match=r"of one type.*here are int and str"),
        attr.batch(range(N)),
    ):
        pass
    assert attr.step == 1
    attr.close()
    table = pa.table({"sample_id": [0, 1], "domain": ["x", "y"]})
    with pytest.raises(ValueError, match="also in the table of samples"):
        train(tmp_path / "other", STEPS[:1], samples=table)


def test_a_sample_that_is_not_finite_is_named():
    case = Case()
    optimizer = case.sgd()
    attr = Attributor(case.model, optimizer, {"val": case.target}, "first_order")
    case.x[2] = torch.nan
    with attr.batch(["first", "second", "third", "fourth"]):
        case.loss().backward()
    with pytest.raises(NonFiniteError, match="samples third is not finite"):
        optimizer.step()


#: ids of two processes in two steps; a name is used by both, and by each alone
SHARED = [[["a", "b"], ["b", "c"]], [["d", "a"], ["a", "e"]]]


def _process(rank: int, folder: str) -> list:
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 2).double()
    x = torch.randn(4, 5).double()[2 * rank : 2 * rank + 2]
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    target = lambda: model(torch.ones(3, 5).double()).square().mean()  # noqa: E731
    values = []
    with Attributor(wrapped, optimizer, {"val": target}, "first_order", store=folder) as attr:
        for ids in SHARED:
            with attr.batch(ids[rank]):
                wrapped(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            values += zip(ids[rank], attr.last["val"].tolist())
    return values


def test_processes_give_a_name_one_number(tmp_path):
    folder = str(tmp_path / "values")
    each = together(2, _process, folder)
    expected: dict = {}
    for name, value in [*each[0], *each[1]]:
        expected[name] = expected.get(name, 0.0) + value
    with ValueStore(folder) as store:
        rows = store.values().to_pylist()
    assert [(row["sample_id"], row["id"]) for row in rows] == list(enumerate("abcde"))
    assert {row["id"]: row["value"] for row in rows} == pytest.approx(expected, rel=1e-6)
