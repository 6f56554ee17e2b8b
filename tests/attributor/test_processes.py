"""Several processes that train together give the values of one process with the whole batch."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import inrun
from inrun import Attributor, Processes, ValueStore
from inrun.attributor import BalanceError, NonFiniteError, ProcessError
from inrun.config import ConfigError
from inrun.methods import FirstOrder, SecondOrder
from inrun.models import build
from inrun.store import StoreError
from tests.support import per_sample
from tests.support.together import together

TOKENS, STEPS, LATE = 9, 5, 4
METHODS = [
    FirstOrder(),
    FirstOrder(state="current", name="current"),
    SecondOrder(),
    inrun.Path(nodes=2),
    inrun.Path(credit="impulse", name="impulse"),
    FirstOrder(update="sgd", name="paper"),
]
#: samples of each process in its two micro-batches
SHARES = [[2, 1], [1, 1]]
VALIDATION = 3


class Language(nn.Module):
    """Mean token loss as the module's own output, as DistributedDataParallel wants it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        sizes = {"block_size": TOKENS, "n_layer": 2, "n_head": 2, "d_model": 16, "vocab_size": 31}
        self.model = build("gpt2", "tiny", **sizes)
        self.double()

    def forward(self, rows):
        return self.model.loss(rows[:, :-1], rows[:, 1:]) / rows[:, 1:].numel()


def rows(n: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 31, (n, TOKENS + 1), generator=torch.Generator().manual_seed(seed))


def micro_batches(step: int, process: int) -> list[tuple[np.ndarray, torch.Tensor, float]]:
    """ids, rows, and the weight of the rows' mean loss in the process's own mean loss."""
    sizes = SHARES[process]
    first = sum(map(sum, SHARES)) * step + sum(map(sum, SHARES[:process]))
    found = []
    for size in sizes:
        ids = np.arange(first, first + size)
        found.append((ids, torch.cat([rows(1, 100 + int(i)) for i in ids]), size / sum(sizes)))
        first += size
    return found


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)


def trained(
    model, whose: list[int], validation: torch.Tensor, weight: float, average=None, **options
) -> dict:
    """The loop of a user in one process, which has the samples of `whose`; what its steps
    left.
    """
    optimizer = optimizer_of(model)
    targets = {"val": lambda: model(validation) * weight}
    own = [(p, k) for p in whose for k in range(2)]
    steps = []
    attr = Attributor(model, optimizer, targets, METHODS, **options)
    for step in range(STEPS):
        for p, k in own:
            ids, part, share = micro_batches(step, p)[k]
            share = share / len(whose)
            last = (p, k) == own[-1]

            def forward(part=part, share=share):
                return model(part) * share

            exchanged = isinstance(model, DistributedDataParallel) and not last
            with model.no_sync() if exchanged else nullcontext(), attr.batch(ids, forward=forward):
                forward().backward()
                if average and last:
                    average(p.grad for p in model.parameters())
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        result = attr.last_step
        names = [m.name for m in METHODS]
        steps.append(
            {
                "ids": result.ids,
                "values": torch.stack([result.values[name, "val"] for name in names]),
                "sums": torch.tensor([result.sums[name, "val"] for name in names]),
                "clip": result.clip,
                "drift": result.drift["val"],
            }
        )
    attr.close()
    return {
        "steps": steps,
        "weights": [p.detach().clone() for p in model.parameters()],
        "ledger": attr.ledger.last,
    }


def process(rank: int, how: str, options: dict) -> dict:
    """One of two processes. how: "ddp", or "own" where the loop averages gradients itself; with
    "views", gradients are views of buckets; with "shared", each evaluates its part of the target.
    """
    model, validation, weight, shared = Language(), rows(VALIDATION, 7), 1.0, False
    if "shared" in how:
        validation = validation[:1] if rank == 0 else validation[1:]
        weight = len(validation) / VALIDATION
        shared = True
    if "ddp" in how:
        parallel = DistributedDataParallel(model, gradient_as_bucket_view="views" in how)
        processes = Processes(share_targets=shared)
        return trained(parallel, [rank], validation, weight, processes=processes, **options)

    def average(gradients):
        for g in gradients:
            dist.all_reduce(g)
            g /= 2

    processes = Processes(dist.group.WORLD, shared)
    return trained(model, [rank], validation, weight, average, processes=processes, **options)


@pytest.mark.parametrize(
    ("how", "options"),
    [
        ("ddp", {}),
        ("ddp, views, shared", {"route": "fused"}),
        ("own", {"route": "replay"}),
        ("own, shared", {"per_token": True}),
        ("ddp", {"route": "forward"}),
    ],
    ids=str,
)
def test_two_processes_value_their_samples_as_one_process_with_the_whole_batch_does(
    how, options, tmp_path
):
    truth = trained(Language(), [0, 1], rows(VALIDATION, 7), 1.0, **options)
    both = together(2, process, how, {**options, "store": str(tmp_path / "values")})
    for one, other in zip(both[0]["weights"], both[1]["weights"]):
        assert torch.equal(one, other)
    for step, expected in enumerate(truth["steps"]):
        found = [p["steps"][step] for p in both]
        assert np.array_equal(np.concatenate([f["ids"] for f in found]), expected["ids"])
        values = torch.cat([f["values"] for f in found], 1)
        for k, method in enumerate(METHODS):
            if expected["values"][k].any():  # Adam's frozen slope is 0 before there is a state
                error = per_sample.relative_error(values[k], expected["values"][k])
                assert error < 1e-9, (step, method.name)
        for f in found:
            assert torch.allclose(f["sums"], expected["sums"], rtol=1e-9)
            assert f["clip"] == pytest.approx(expected["clip"], rel=1e-12)
            assert f["drift"] == pytest.approx(expected["drift"], rel=1e-9)
    for key, row in truth["ledger"].items():
        for p in both:
            for name in ("loss_before", "loss_after", "drop", "drift", "values", "residual"):
                assert p["ledger"][key][name] == pytest.approx(row[name], rel=1e-7, abs=1e-12)
    with ValueStore(tmp_path / "values") as store:
        stored = store.sql("SELECT sample_id, path FROM terms ORDER BY sample_id").to_pydict()
        assert stored["sample_id"] == list(range(STEPS * sum(map(sum, SHARES))))
        expected = torch.cat([step["values"][3] for step in truth["steps"]]).float()
        assert torch.allclose(torch.tensor(stored["path"]), expected, rtol=1e-5, atol=1e-9)
        per_step = store.sql("SELECT count(*) AS n, max(samples) AS samples FROM steps").to_pylist()
        assert per_step == [{"n": STEPS, "samples": sum(map(sum, SHARES))}]


def broken(rank: int, how: str, store: str) -> list[str]:
    """Names and texts of the errors that both processes must raise, and neither wait for the
    other.
    """
    model = Language()
    parallel = DistributedDataParallel(model)
    validation = rows(VALIDATION, 7)
    told = []

    def attributor(given, **options):
        optimizer = optimizer_of(model)
        return optimizer, Attributor(
            given, optimizer, {"val": lambda: given(validation)}, "path", **options
        )

    def step(given, factor: float, **options):
        optimizer, attr = attributor(given, **options)
        with attr:
            with attr.batch([rank]):
                (parallel(rows(1, rank)) * factor).backward()
            optimizer.step()

    try:
        if how == "not finite":
            step(parallel, float("inf") if rank else 1.0)
        elif how == "not told":
            step(model, 1.0)
        elif how == "store":
            attributor(parallel, store=store)[1].close()
            with attributor(parallel, store=store)[1].batch([rank]):
                pass
        elif how == "compiled":
            Attributor(
                parallel,
                optimizer_of(model),
                {"val": lambda: model(validation)},
                "first_order",
                route="compiled",
            )
        else:
            _, attr = attributor(parallel)
            with attr.batch([rank]):
                parallel(rows(1, rank)).backward()
            attr.interactions()
    except Exception as error:
        told += [type(error).__name__, str(error)]
    return told


@pytest.mark.parametrize(
    ("how", "errors", "text"),
    [
        ("not finite", [NonFiniteError, NonFiniteError], "the gradient of sample"),
        (
            "not told",
            [BalanceError, BalanceError],
            "averaged over processes without the Attributor being told",
        ),
        ("store", [StoreError, ProcessError], "already holds the values of a run"),
        ("compiled", [ConfigError, ConfigError], "one process only"),
        ("interactions", [RuntimeError, RuntimeError], "one process"),
    ],
)
def test_what_fails_in_one_process_fails_in_both(how, errors, text, tmp_path):
    both = together(2, broken, how, str(tmp_path / "values"))
    assert [name for name, _ in both] == [error.__name__ for error in errors]
    assert text in both[0][1] or text in both[1][1]


def test_parameters_that_are_sharded_over_devices_are_refused():
    model = nn.Linear(2, 1)
    model.weight.device_mesh = "as a DTensor has it"
    with pytest.raises(ValueError, match="weight is sharded"):
        Attributor(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            {"val": lambda: model(torch.ones(1, 2)).sum()},
            "first_order",
        )
