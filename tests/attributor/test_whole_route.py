"""One sample per micro-batch: any layer, every method, the same training."""

import pytest
import torch
import torch.nn.functional as F

import inrun
from inrun import Attributor, Whole
from inrun.attributor import BalanceError
from inrun.ghost import WholeGradients, WholeRouteError
from tests.support import per_sample
from tests.support.any_layer import EXAMPLES, LR, Example, N, regression
from tests.support.small_models import loss_of, rows, small
from tests.support.together import together

#: of the norm of the values: float64 sums in another order; the experts compute in float32
BOUNDS = {"grouped experts": 2e-6}
METHODS = ["first_order", "second_order", "path"]


def valued(example: Example, route: object, forward: bool = False) -> Attributor:
    """The Attributor after one step of SGD with every sample in a micro-batch of its own."""
    optimizer = torch.optim.SGD(example.model.parameters(), lr=LR)
    attr = Attributor(example.model, optimizer, {"val": example.target}, "first_order", route=route)
    for i in range(N):
        again = (lambda i=i: example.share(i)) if forward else None
        with attr.batch([i], forward=again):
            example.share(i).backward()
    optimizer.step()
    attr.close()
    return attr


@pytest.mark.parametrize("name", EXAMPLES)
def test_any_layer_is_valued_as_the_loop_says_parameter_by_parameter(name):
    torch.manual_seed(0)
    example = EXAMPLES[name]()
    parts, bound = example.parts(), BOUNDS.get(name, 1e-12)
    attr = valued(example, "whole")
    total = sum(parts.values())
    assert per_sample.relative_error(attr.last["val"], total) < bound
    found = attr.last_step.per_parameter["first_order", "val"]
    for parameter, part in parts.items():
        off = (found.get(parameter, torch.zeros(N)) - part).norm() / total.norm()
        assert off < bound, parameter


def trained(route: object, optimizer_of, plain: bool = False, forward: bool = False):
    """Values of the last of four steps of two uneven logical batches, and the weights after."""
    torch.manual_seed(0)
    model = small("gpt2", dropout=0.1)
    val, optimizer = rows(2, 9), optimizer_of(model)

    def target():
        model.eval()
        loss = loss_of(model, val, 0.1)
        model.train()
        return loss

    attr = None if plain else Attributor(model, optimizer, {"val": target}, METHODS, route=route)
    for step, n in enumerate((3, 2, 3, 3)):
        for i, row in enumerate(rows(n, step).split(1)):
            loss = lambda row=row: loss_of(model, row, 0.02)  # noqa: E731
            if attr is None:
                loss().backward()
            else:
                with attr.batch([i], forward=loss if forward else None):
                    loss().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
    return attr, [p.detach().clone() for p in model.parameters()]


OPTIMIZERS = {
    "momentum": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    "AdamW": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("memory", [None, 0, 120_000])
def test_every_method_agrees_with_the_rules_and_the_training_is_the_same_to_the_bit(
    optimizer, memory
):
    """With no memory, and with some for a sample and a half, the others are run once more."""
    ruled, _ = trained("tap", OPTIMIZERS[optimizer])
    _, alone = trained(None, OPTIMIZERS[optimizer], plain=True)
    whole, weights = trained(Whole(memory), OPTIMIZERS[optimizer], forward=memory is not None)
    assert all(torch.equal(a, b) for a, b in zip(alone, weights))
    for key, values in ruled.last_step.values.items():
        assert per_sample.relative_error(whole.last_step.values[key], values) < 1e-9, key


def test_memory_that_is_used_up_is_said_with_three_ways_out():
    example = EXAMPLES["GRU"]()
    optimizer = torch.optim.SGD(example.model.parameters(), lr=LR)
    attr = Attributor(example.model, optimizer, {"val": example.target}, "path", route=Whole(3000))
    with attr.batch([0]):
        example.share(0).backward()
    with (
        pytest.raises(WholeRouteError, match=r"after 1 samples.*forward=.*memory=.*first_order"),
        attr.batch([1]),
    ):
        example.share(1).backward()


def test_several_samples_in_a_micro_batch_are_refused_by_name():
    example = EXAMPLES["LSTM"]()
    optimizer = torch.optim.SGD(example.model.parameters(), lr=LR)
    attr = Attributor(
        example.model, optimizer, {"val": example.target}, "first_order", route="whole"
    )
    with (
        pytest.raises(WholeRouteError, match="one sample per micro-batch, and 4 ids were given"),
        attr.batch(range(N)),
    ):
        example.together().backward()


@pytest.mark.parametrize("memory", [None, 0])
def test_interactions_are_those_of_the_rules_or_refused(memory):
    found = []
    for route in ("tap", Whole(memory)):
        torch.manual_seed(0)
        example = regression(torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 2)), 6)
        optimizer = torch.optim.SGD(example.model.parameters(), lr=LR)
        attr = Attributor(
            example.model, optimizer, {"val": example.target}, "second_order", route=route
        )
        for i in range(N):
            share = lambda i=i, example=example: example.share(i)  # noqa: E731
            with attr.batch([i], forward=share):
                share().backward()
        if memory == 0 and route != "tap":
            with pytest.raises(RuntimeError, match="whole as long as its memory lasts"):
                attr.interactions()
            return
        found.append(attr.interactions())
    assert per_sample.relative_error(found[1], found[0]) < 1e-12


def test_what_is_added_to_the_gradient_counts_and_nothing_else_does():
    """Two backwards in a block, an inner gradient, and one for the parameters that nobody adds."""
    example = regression(torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 2)), 6)
    expected = example.truth()
    optimizer = torch.optim.SGD(example.model.parameters(), lr=LR)
    attr = Attributor(
        example.model, optimizer, {"val": example.target}, "first_order", route="whole"
    )
    for i in range(N):
        with attr.batch([i]):
            torch.autograd.grad(7 * example.share(i), list(example.model.parameters()))
            (0.25 * example.share(i)).backward()
            (0.75 * example.share(i)).backward()
    optimizer.step()
    assert per_sample.relative_error(attr.last["val"], expected) < 1e-12


def test_a_compiled_model_is_valued_without_being_seen_inside():
    example = EXAMPLES["an operation without a rule"]()
    expected = example.truth()
    example.model.compile(backend="aot_eager")
    assert per_sample.relative_error(valued(example, "whole").last["val"], expected) < 1e-12


def _process(rank: int, views: bool) -> list:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
    model = model.double()
    x, y = torch.randn(4, 6).double(), torch.randn(4, 2).double()
    wrapped = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=views)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.5)
    target = lambda: F.mse_loss(model(x + 1), y)  # noqa: E731
    attr = Attributor(wrapped, optimizer, {"val": target}, METHODS, route="whole")
    found = []
    for _ in range(3):
        for i in (0, 1):
            at = slice(2 * rank + i, 2 * rank + i + 1)
            quietly = wrapped.no_sync() if i == 0 else torch.enable_grad()
            with quietly, attr.batch([2 * rank + i]):
                (F.mse_loss(wrapped(x[at]), y[at]) / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(attr.last_step.values)
    return found


@pytest.mark.parametrize("views", [False, True])
def test_two_processes_give_the_values_of_one(views):
    each = together(2, _process, views)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
    model = model.double()
    x, y = torch.randn(4, 6).double(), torch.randn(4, 2).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.5)
    attr = inrun.Attributor(model, optimizer, {"val": lambda: F.mse_loss(model(x + 1), y)}, METHODS)
    for step in range(3):
        with attr.batch(range(4)):
            F.mse_loss(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        for key, values in attr.last_step.values.items():
            both = torch.cat([found[step][key] for found in each])
            assert per_sample.relative_error(both, values) < 1e-11, key


class Pairs(torch.nn.Module):
    """A complex weight kept as pairs of real numbers, or as it is."""

    def __init__(self, pairs: bool):
        super().__init__()
        w = torch.randn(6, 2, dtype=torch.complex128)
        self.pairs, self.w = pairs, torch.nn.Parameter(torch.view_as_real(w) if pairs else w)

    def forward(self, x):
        w = torch.view_as_complex(self.w) if self.pairs else self.w
        return (x.to(w.dtype) @ w).abs()


def test_a_complex_weight_under_adam_is_refused_and_one_kept_as_pairs_is_right():
    example = regression(Pairs(pairs=False), 6)
    optimizer = torch.optim.AdamW(example.model.parameters(), lr=1e-3)
    with pytest.raises(TypeError, match=r"w is complex.*pairs"):
        Attributor(example.model, optimizer, {"val": example.target}, "first_order")
    example = regression(Pairs(pairs=True), 6)
    optimizer = torch.optim.AdamW(example.model.parameters(), lr=1e-3)
    for _ in range(5):  # past the first steps
        example.together().backward()
        optimizer.step()
        optimizer.zero_grad()
    attr = Attributor(example.model, optimizer, {"val": example.target}, "path", route="whole")
    for i in range(N):
        with attr.batch([i]):
            example.share(i).backward()
    optimizer.step()
    attr.flush()
    row = attr.ledger.last["path", "val"]
    assert abs(row["residual"]) < 1e-4 * abs(row["values"])


def _accumulated(self, name):
    """All that is in .grad, earlier samples too."""
    return lambda parameter: self.add(name, parameter.grad.clone())


def _looked_at(self, name):
    """What a hook sees, whether it is added to .grad or not."""
    return lambda gradient: self.add(name, gradient)


def _of_the_first(self, gradients):
    """A second run gives the gradient of one parameter to another."""
    turned = [g if g is None else g.flip(0) for g in gradients]
    for name, gradient in zip(self.watched, turned):
        self.add(name, gradient)


MISTAKES = {
    "the sum so far is taken for the sample's": ("_take", _accumulated, None),
    "a gradient that nobody adds counts": ("_look", _looked_at, None),
    "a second run is turned round": ("add_all", _of_the_first, 0),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_this_route_is_refused_by_the_balance(mistake, monkeypatch):
    name, wrong, memory = MISTAKES[mistake]
    monkeypatch.setattr(WholeGradients, name, wrong)
    if name == "_look":
        monkeypatch.setattr(WholeGradients, "_take", lambda self, name: lambda parameter: None)
    torch.manual_seed(0)
    example = regression(torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 2)), 6)
    optimizer = torch.optim.SGD(example.model.parameters(), lr=LR)
    method = "first_order" if memory is None else "path"
    targets = {"val": example.target}
    attr = Attributor(example.model, optimizer, targets, method, route=Whole(memory))
    for i in range(N):
        share = lambda i=i: example.share(i)  # noqa: E731
        with attr.batch([i], forward=share):
            torch.autograd.grad(share(), list(example.model.parameters()))
            share().backward()
    with pytest.raises(BalanceError):
        optimizer.step()
