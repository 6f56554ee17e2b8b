"""Every operation that takes a parameter, against one backward per sample in float64: values by
three methods, and the trained weights' bits.

Both sides sum the same products in another order: relative errors of 1e-15 to 1e-12.
"""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from inrun import Attributor
from inrun.conformance import Engine, judge
from inrun.conformance.optimizers import adamw, sgd
from inrun.conformance.problem import Case, Formula
from inrun.conformance.problems import regression
from inrun.methods import TargetError
from tests.support import per_sample
from tests.support.operation_layers import OPERATIONS, RANDOM, D, Product, T

METHODS = {
    "first_order": (Formula(), sgd()),
    "second_order": (Formula(kind="second_order"), sgd()),
    "path": (Formula(kind="path"), adamw()),
}

#: operations of which torch has first derivatives only
ONCE = {name for name in OPERATIONS if "bags" in name} | {"cdist"}


def case(name: str, method: str, together: bool = False, n: int = 6, **options) -> Case:
    formula, optimizer = METHODS[method]
    layer = (OPERATIONS | RANDOM)[name]
    build = (lambda: copy.deepcopy(layer)) if isinstance(layer, nn.Module) else layer
    problem = regression(build, (T, D), n=n, together=together)
    problem = replace(problem, quiet=together)
    return Case(name, "an operation", problem, optimizer, formula, micro=(4, 2), **options)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_exact(name, method):
    if method == "second_order" and name in ONCE:
        pytest.skip("torch has no second derivative of it, which the target needs")
    outcome = judge(Engine(), case(name, method))
    assert outcome.status == "pass", outcome.says


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", RANDOM)
def test_a_random_function_of_a_weight_draws_what_the_forward_drew(name, method):
    outcome = judge(Engine(), case(name, method, together=True))
    assert outcome.status == "pass", outcome.says


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
def test_the_old_weight_norm_is_exact_too():
    # its hooks forbid a copy of the model, which the conformance oracle takes
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(D, D)), nn.Tanh(), nn.Linear(D, 2))
    model.double()
    x, y = torch.randn(6, D).double(), torch.randn(6, 2).double()
    loss = lambda i: (model(x[i]) - y[i]).square().sum()  # noqa: E731
    truth, _ = per_sample.first_order(
        model, [lambda i=i: loss(slice(i, i + 1)) for i in range(4)], lambda: loss([4, 5]), 0.1
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attr = Attributor(model, optimizer, {"val": lambda: loss([4, 5])}, "first_order")
    with attr.batch(range(4)):
        loss(slice(0, 4)).backward()
    optimizer.step()
    assert per_sample.relative_error(attr.last["val"], truth) < 1e-12


def test_a_target_without_second_derivatives_says_which_methods_need_none():
    model = nn.Sequential(nn.EmbeddingBag(5, 3), nn.Linear(3, 1))
    ids = torch.randint(5, (6, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attr = Attributor(model, optimizer, {"val": lambda: model(ids).square().mean()}, "second_order")
    with attr.batch(range(6)):
        model(ids).square().mean().backward()
    with pytest.raises(TargetError, match=r"no second derivative.*method=.path"):
        optimizer.step()


def of_own_function(given):
    """One step of a model whose only layer is a function with a backward of its own."""
    torch.manual_seed(0)
    model = nn.Module()
    model.w = nn.Parameter(torch.randn(5, D, dtype=torch.float64))
    x = torch.randn(6, 2, D, dtype=torch.float64)
    loss = lambda i: Product.apply(x[i], 0.5, given(model.w))[0].square().sum()  # noqa: E731
    return model, loss, torch.optim.SGD(model.parameters(), lr=0.01)


@pytest.mark.parametrize("given", [lambda w: w, lambda w: 1 * w])
def test_a_parameter_given_to_an_own_function_is_valued_where_the_weights_are(given):
    model, loss, optimizer = of_own_function(given)
    losses = [lambda i=i: loss(slice(i, i + 1)) for i in range(4)]
    truth, _ = per_sample.first_order(model, losses, lambda: loss([4, 5]), 0.01)
    attr = Attributor(model, optimizer, {"val": lambda: loss([4, 5])}, "first_order")
    with attr.batch(range(4)):
        loss(slice(0, 4)).backward()
    optimizer.step()
    assert per_sample.relative_error(attr.last["val"], truth) < 1e-12


def test_where_a_method_looks_at_other_weights_the_way_to_give_them_is_named_and_right():
    model, loss, optimizer = of_own_function(lambda w: w)
    attr = Attributor(model, optimizer, {"val": lambda: loss([4, 5])}, "path")
    with attr.batch(range(4)):
        loss(slice(0, 4)).backward()
    with pytest.raises(TargetError, match=r"parameter w is given.*1 \* self\.weight"):
        optimizer.step()
    model, loss, optimizer = of_own_function(lambda w: 1 * w)
    before = float(loss([4, 5]).detach())
    attr = Attributor(model, optimizer, {"val": lambda: loss([4, 5])}, "path")
    with attr.batch(range(4)):
        loss(slice(0, 4)).backward()
    optimizer.step()
    drop = before - float(loss([4, 5]).detach())
    # the loss is a quadratic in w, of which the midpoint is exact
    assert abs(float(attr.last["val"].sum()) - drop) < 1e-10 * abs(drop)
