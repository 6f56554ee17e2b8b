"""What cannot be valued is refused by name, before the weights move."""

import copy

import pytest
import torch
from torch import nn

import inrun
from inrun import Attributor
from inrun.attributor import BalanceError, NonFiniteError, UnseenParameterError
from inrun.ghost import MixedSamplesError, UncoveredUseError
from inrun.methods import TargetError
from tests.support import per_sample
from tests.support.small_models import Regressor, regression


def test_batch_norm_in_training_is_refused_with_the_reason_and_frozen_batch_norm_is_not():
    model = Regressor(nn.BatchNorm1d(8))
    attr = Attributor(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        {"val": regression(model, seed=1)},
        "first_order",
    )
    with pytest.raises(MixedSamplesError, match="statistics of its batch"), attr.batch(range(6)):
        regression(model)().backward()
    model.norm.eval()
    with attr.batch(range(6)):
        regression(model)().backward()
    attr.optimizers[0].step()
    assert attr.last["val"].shape == (6,)


def test_a_sum_over_samples_beside_a_parameter_is_refused_with_the_way_to_write_it():
    model = Regressor().double()
    model.shares = nn.Parameter(torch.rand(6, dtype=torch.float64))
    x, xv = (torch.randn(6, 4, dtype=torch.float64) for _ in range(2))
    loss = lambda: torch.dot(model.shares, model(x)[:, 0])  # noqa: E731
    written = lambda i: (model.shares[i] * model(x[i])[:, 0]).sum()  # noqa: E731
    val = lambda: model(xv).square().mean()  # noqa: E731
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rows = [lambda i=i: written(slice(i, i + 1)) for i in range(6)]
    truth, _ = per_sample.first_order(model, rows, val, 0.1)
    attr = Attributor(model, optimizer, {"val": val}, "first_order")
    said = r"shares.*torch\.dot of tensors \[6\], \[6\].*add up after it"
    with pytest.raises(UncoveredUseError, match=said), attr.batch(range(6)):
        loss()
    with attr.batch(range(6)):
        written(slice(0, 6)).backward()
    optimizer.step()
    assert per_sample.relative_error(attr.last["val"], truth) < 1e-10


def test_a_gradient_from_outside_the_batch_is_a_balance_error_that_names_the_parameter():
    model = Regressor()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attr = Attributor(model, optimizer, {"val": regression(model, seed=1)}, "first_order")
    before = copy.deepcopy(model.state_dict())
    (0.01 * model.first.weight.square().sum()).backward()
    with attr.batch(range(6)):
        regression(model)().backward()
    with pytest.raises(BalanceError, match=r"first\.weight.*regulariser"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))


def test_clipping_one_parameter_alone_is_a_balance_error():
    model = Regressor()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attr = Attributor(model, optimizer, {"val": regression(model, seed=1)}, "first_order")
    with attr.batch(range(6)):
        regression(model)().backward()
    model.last.weight.grad.mul_(0.5)
    with pytest.raises(BalanceError, match=r"last\.weight.*multiplied by 0\.5"):
        optimizer.step()


def test_a_parameter_used_out_of_sight_is_named():
    model = Regressor()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attr = Attributor(model, optimizer, {"val": regression(model, seed=1)}, "first_order")
    loss = regression(model)()
    with attr.batch(range(6)):
        loss.backward()
    with pytest.raises(UnseenParameterError, match=r"first\.weight"):
        optimizer.step()


def test_nan_in_one_sample_is_named_before_the_weights_move_and_enters_no_total():
    for method in ("first_order", "path"):
        model = Regressor()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        attr = Attributor(model, optimizer, {"val": regression(model, seed=1)}, method)
        x = torch.randn(6, 4)
        x[4, 1] = float("nan")
        before = copy.deepcopy(model.state_dict())
        with attr.batch(range(10, 16)):
            nn.functional.mse_loss(model(x), torch.zeros(6, 2)).backward()
        with pytest.raises(
            NonFiniteError, match=r"step 0: the gradient of samples 14 is not finite"
        ):
            optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))
        optimizer.zero_grad()
        with attr.batch(range(6)):  # and the run can go on
            regression(model)().backward()
        optimizer.step()
        assert attr.last_step.step == 0


def test_nothing_is_left_behind_after_close_nor_after_an_exception():
    model = Regressor(nn.GroupNorm(2, 8))
    model.last.bias.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    facts = lambda: (  # noqa: E731
        [(n, p.requires_grad, p.grad, sorted(vars(p))) for n, p in model.named_parameters()],
        [sorted(vars(module)) for module in model.modules()],
        len(optimizer._optimizer_step_pre_hooks),
        torch.get_rng_state().tolist(),
        torch.overrides._len_torch_function_stack(),
    )
    before = facts()
    attr = Attributor(
        model,
        optimizer,
        {"val": lambda: regression(model, seed=1)() + 0 * torch.rand(())},
        ["first_order", "second_order", "path"],
    )

    def broken():
        with attr.batch(range(6)):
            regression(model)()
            raise KeyError("the loop broke")

    with pytest.raises(KeyError):
        broken()
    attr.close()
    assert facts() == before


def test_a_skipped_step_takes_its_micro_batches_with_it(caplog):
    model = Regressor()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attr = Attributor(model, optimizer, {"val": regression(model, seed=1)}, "first_order")
    with attr.batch(range(6)):
        regression(model)().backward()
    optimizer.zero_grad()  # as a loss scaler does after an overflow: no step
    with attr.batch(range(6, 12)):
        regression(model, seed=2)().backward()
    optimizer.step()
    assert attr.last_step.ids.tolist() == list(range(6, 12))
    assert "zeroed without an optimizer step" in caplog.text


def test_loss_scaling_is_measured_and_divided_out():
    model = Regressor()
    truth, _ = per_sample.first_order(
        model, [lambda: regression(model)()], regression(model, seed=1), 0.1
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attr = Attributor(model, optimizer, {"val": regression(model, seed=1)}, "first_order")
    with attr.batch(range(6)):
        (1024 * regression(model)()).backward()
    for p in model.parameters():
        p.grad.div_(1024)
    optimizer.step()
    assert attr.last_step.clip == pytest.approx(1 / 1024)
    assert float(attr.last["val"].sum()) == pytest.approx(float(truth.sum()), rel=1e-5)


@pytest.mark.parametrize(
    ("closure", "message"),
    [
        (lambda model: lambda: model(torch.zeros(1, 4)), "shape"),
        (lambda model: lambda: 1.0, "float"),
        (lambda model: lambda: torch.tensor(1.0), "does not depend on"),
        (lambda model: lambda: model(torch.zeros(1, 4)).sum() * float("nan"), "nan"),
    ],
)
def test_a_target_that_is_no_loss_is_refused(closure, message):
    model = Regressor()
    attr = Attributor(
        model, torch.optim.SGD(model.parameters(), lr=0.1), {"val": closure(model)}, "first_order"
    )
    with pytest.raises(TargetError, match=message), attr.batch(range(6)):
        pass


def test_bad_arguments_say_what_to_do():
    model = Regressor()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    val = {"val": regression(model, seed=1)}
    with pytest.raises(ValueError, match="'third_order': choose one of 'path'"):
        Attributor(model, optimizer, val, "third_order")
    with pytest.raises(ValueError, match="distinct names"):
        Attributor(model, optimizer, val, ["path", inrun.Path(nodes=3)])
    with pytest.raises(ValueError, match="at least one target"):
        Attributor(model, optimizer, {}, "first_order")
    with pytest.raises(ValueError, match="matches no trainable parameter"):
        Attributor(model, optimizer, val, "first_order", params="decoder")
    with pytest.raises(ValueError, match="another model"):
        Attributor(Regressor(), optimizer, val, "first_order")
    attr = Attributor(model, optimizer, val, "first_order")
    with (
        pytest.raises(ValueError, match="one per sample"),
        attr.batch(torch.zeros(2, 3, dtype=torch.long)),
    ):
        pass
    attr.close()
    with pytest.raises(RuntimeError, match="closed"), attr.batch([0]):
        pass


@pytest.mark.parametrize("route", ["tap", "fused"])
@pytest.mark.parametrize("method", ["first_order", "path"])
def test_ids_whose_number_is_not_that_of_the_samples_are_refused(method, route):
    """Six rows can be cut into two or three groups, and their parts would add up."""
    for count in (2, 3):
        model = Regressor()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        target = {"val": regression(model, seed=1)}
        attr = Attributor(model, optimizer, target, method, route=route)
        with (
            pytest.raises(ValueError, match=rf"{count} ids were given.*Give one id per sample"),
            attr.batch(range(count)),
        ):
            regression(model)().backward()
        model.zero_grad()
        with attr.batch(range(6)):
            regression(model)().backward()
        optimizer.step()
        assert attr.last["val"].shape == (6,)


def test_samples_must_be_the_leading_axis():
    model = Regressor()
    attr = Attributor(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        {"val": regression(model, seed=1)},
        "first_order",
    )
    with (
        pytest.raises(ValueError, match=r"4 ids were given.*in the order of axis 0"),
        attr.batch(range(4)),
    ):  # six rows
        regression(model)().backward()
