"""Options cannot contradict themselves: every pair changes what is done, or is refused with advice.

Under each kind of method all pairs of the settings below are tried on a few steps of a small
training. What a pair does must differ from what each of the two does alone, in its values, in what
is kept, evaluated or checked, or in what the store holds.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from inrun import Attributor, Fused, Intervals, Recording, Tap
from inrun.attributor import step as attributor_step
from inrun.attributor.micro_batches import MicroBatches
from inrun.methods import Method, Target

STEPS = 4

#: (what is chosen, label) -> its value; two settings of one thing are no pair
SETTINGS = {
    ("method.update", "sgd"): "sgd",
    ("method.credit", "impulse"): "impulse",
    ("method.name", "other"): "other",
    ("method.state", "current"): "current",
    ("method.largest_excess", "0.1"): 0.1,
    ("method.nodes", "3"): 3,
    ("method.quadrature", "gauss"): "gauss",
    ("method.tolerance", "1e-9"): 1e-9,
    ("route", "tap, no room"): Tap(memory=0),
    ("route", "fused"): "fused",
    ("route", "fused, no memory"): Fused(memory=0),
    ("route", "replay"): "replay",
    ("route", "forward"): "forward",
    ("route", "compiled"): "compiled",
    ("every", "2"): 2,
    ("intervals.refresh", "2"): 2,
    ("intervals.ledger", "2"): 2,
    ("intervals.ledger", "never"): 0,
    ("intervals.balance", "2"): 2,
    ("intervals.balance", "never"): 0,
    ("audit", "off"): False,
    ("per_token", "yes"): True,
    ("params", "head"): "head",
    ("store.flush_every", "1"): 1,
    ("store.samples", "a table"): pa.table({"sample_id": [0, 1], "domain": ["a", "b"]}),
    ("store.about", "a digest"): {"corpus_digest": "1" * 64},
}
#: a refusal says what is known, or what to say instead
ADVICE = ("known are", "say ", "Say ", "use ", "leave out")
KINDS = ("first_order", "second_order", "path")


class Small(nn.Module):
    """A table, a norm and a head, whose loss has rows."""

    def __init__(self):
        super().__init__()
        self.table, self.norm, self.head = nn.Embedding(7, 4), nn.LayerNorm(4), nn.Linear(4, 7)

    def forward(self, tokens):
        logits = self.head(self.norm(self.table(tokens[:, :-1])))
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def arguments(kind: str, chosen: dict[str, object], folder) -> dict[str, object]:
    """Keyword arguments of an Attributor; a dot names a field of one of its options."""
    parts: dict[str, dict] = {"method": {"kind": kind}, "intervals": {}, "store": {}}
    plain = {}
    for place, value in chosen.items():
        group, _, field = place.partition(".")
        if field:
            parts[group][field] = value
        else:
            plain[group] = value
    own = parts["method"]
    if kind == "first_order" and not {"update", "state"} & set(own):
        own.setdefault("largest_excess", math.inf)  # so that it is known before in few steps too
    made = {
        "method": Method.from_config(parts["method"]),
        "intervals": Intervals(**parts["intervals"]),
        "store": Recording(folder, **parts["store"]) if parts["store"] else None,
    }
    return made | plain


@dataclass
class Watched:
    """What an attributed training did, in numbers that can be compared."""

    seen: list

    def note(self, *things: object) -> None:
        self.seen.append(tuple(t.tolist() if isinstance(t, torch.Tensor) else t for t in things))


def watch(patch: pytest.MonkeyPatch) -> Watched:
    """Notes evaluations of targets, checks of the balance, and what is recorded of a batch."""
    watched = Watched([])

    def counted(owner, name: str, facts: Callable = lambda *a, **k: ()) -> None:
        original = getattr(owner, name)

        def call(*args, **kwargs):
            watched.note(name, *facts(*args, **kwargs))
            return original(*args, **kwargs)

        patch.setattr(owner, name, call)

    def recorded(self, ids, forward, record, rows):
        memory = getattr(record, "memory", None)
        return type(record).__name__, getattr(record, "fused", None), memory and memory.budget

    counted(Target, "gradient")
    counted(Target, "loss")
    counted(attributor_step, "check_balance")
    counted(attributor_step, "check_forward_balance")
    counted(MicroBatches, "recorded", recorded)
    counted(MicroBatches, "again")
    return watched


def done(patch: pytest.MonkeyPatch, kind: str, chosen: dict[str, object], folder) -> list:
    """What a training with these settings does; ValueError if they are refused."""
    options = arguments(kind, chosen, folder)
    torch.manual_seed(0)
    model = Small().double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.8, 0.9), weight_decay=0.1)
    tokens = torch.randint(7, (STEPS, 4, 5))
    for rows in tokens:  # past AdamW's first steps, whose slopes are averaged
        model(rows).backward()
        optimizer.step()
        optimizer.zero_grad()
    watched = watch(patch)
    attr = Attributor(model, optimizer, {"val": lambda: model(tokens[0])}, **options)
    for number, rows in enumerate(tokens):
        with attr.batch(range(4), forward=lambda rows=rows: model(rows)):
            model(rows).backward()
        optimizer.step()
        optimizer.zero_grad()
        last = attr.last_step
        if last is not None and last.step == number:
            watched.note(number, list(last.values), *last.values.values())
            watched.note(sorted({name for parts in last.per_parameter.values() for name in parts}))
            watched.note([rows.tolist() for parts in last.tokens.values() for rows in parts])
    values = attr.close()
    watched.note(sorted(map(repr, attr.ledger.last.items())))
    if values is not None:
        watched.note(len(list(folder.rglob("*.parquet"))), values.run["corpus_digest"])
    return watched.seen


@pytest.mark.parametrize("kind", KINDS)
def test_every_pair_of_options_changes_what_is_done_or_is_refused_with_advice(kind, tmp_path):
    folders = (tmp_path / str(number) for number in itertools.count())
    refusals: list[str] = []

    def outcome(*settings) -> list | None:
        with pytest.MonkeyPatch.context() as patch:
            try:
                chosen = {place: SETTINGS[place, label] for place, label in settings}
                return done(patch, kind, chosen, next(folders))
            except ValueError as error:
                refusals.append(str(error))
                return None

    alone = {setting: outcome(setting) for setting in SETTINGS}
    base = outcome()
    assert base not in alone.values(), "each option does something"
    assert sum(found is not None for found in alone.values()) > 12
    without_effect = []
    for a, b in itertools.combinations(SETTINGS, 2):
        if a[0] == b[0] or alone[a] is None or alone[b] is None:
            continue
        both = outcome(a, b)
        if both is not None and both in (alone[a], alone[b]):
            without_effect.append((a, b))
    assert not without_effect
    assert all(any(word in text for word in ADVICE) for text in refusals), set(refusals)
