"""Every route gives the values of the others, and leaves the training as it says."""

import copy

import pytest
import torch

import inrun
from inrun import Attributor
from tests.support import per_sample
from tests.support.small_models import FLOAT32, loss_of, rows, small


@pytest.mark.parametrize("method", ["first_order", "second_order", "path"])
def test_weights_are_the_same_bits_with_and_without_attribution(method):
    trained = []
    for attribute in (False, True):
        torch.manual_seed(0)
        model = small("gpt2", torch.float32, dropout=0.1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
        val = rows(3, 2)
        attr = (
            Attributor(model, optimizer, {"val": lambda m=model, v=val: loss_of(m, v, 0.1)}, method)
            if attribute
            else None
        )
        for step in range(20):
            for micro in range(2):
                batch = rows(3, 10 * step + micro)
                if attr:
                    with attr.batch(range(3)):
                        loss_of(model, batch, 0.01).backward()
                else:
                    loss_of(model, batch, 0.01).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
        trained.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*trained))


@pytest.mark.parametrize("memory", [0, 20_000, 1 << 30])
def test_the_fused_backward_agrees_in_float32_whatever_memory_it_may_keep(memory):
    train, val = rows(6, 1), rows(3, 2)
    results, gradients = {}, {}
    for dtype, route in ((torch.float64, "tap"), (torch.float32, inrun.Fused(memory))):
        torch.manual_seed(0)
        model = small("gpt2", torch.float64).to(dtype)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95))
        for p in model.parameters():
            optimizer.state[p] = {
                "step": torch.tensor(7.0),
                "exp_avg": torch.full_like(p, 1e-2),
                "exp_avg_sq": torch.full_like(p, 1e-3),
            }
        attr = Attributor(
            model,
            optimizer,
            {"val": lambda m=model: loss_of(m, val, 0.1)},
            list(FLOAT32),
            route=route,
        )
        for ids in ([0, 1, 2], [3, 4, 5]):
            with attr.batch(ids):
                loss_of(model, train[ids], 0.01).backward()
        gradients[dtype] = [p.grad.double() for p in model.parameters()]
        optimizer.step()
        results[dtype] = attr.last_step.values
    for method, bound in FLOAT32.items():
        assert (
            per_sample.relative_error(
                results[torch.float32][method, "val"], results[torch.float64][method, "val"]
            )
            < bound
        ), method
    for a, b in zip(*gradients.values()):
        assert per_sample.relative_error(b, a) < 2e-6


def test_autocast_scores_what_the_weight_gradient_saw():
    """bf16 rounds inputs and output gradients to 2^-9; values follow to the accuracy of bf16
    training itself, and the books balance within its tolerance.
    """
    train, val = rows(6, 1), rows(3, 2)
    results = []
    for route, autocast in (("tap", False), ("tap", True), ("fused", True)):
        torch.manual_seed(0)
        model = small("gpt2", torch.float32)
        attr = Attributor(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            {"val": lambda m=model: loss_of(m, val, 0.1)},
            ["first_order", "path"],
            route=route,
        )
        with attr.batch(range(6)):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = loss_of(model, train, 0.01)
            loss.backward()
        attr.optimizers[0].step()
        results.append(attr.last_step.values)
    for method in ("first_order", "path"):
        exact, tapped, fused = (values[method, "val"] for values in results)
        assert per_sample.relative_error(tapped, exact) < 3e-2
        assert per_sample.relative_error(fused, exact) < 3e-2


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_nothing(reentrant):
    train, val = rows(3, 1), rows(2, 2)
    results = []
    for checkpointed in (False, True):
        torch.manual_seed(3)
        model = small("gpt2")

        def target(model=model):
            if (
                reentrant
            ):  # torch refuses this kind under autograd.grad; evaluation does without it anyway
                model.eval()
            loss = loss_of(model, val, 0.1)
            model.train()
            return loss

        for block in model.h if checkpointed else ():
            inner = block.forward
            block.forward = lambda *a, block=block, inner=inner: (
                torch.utils.checkpoint.checkpoint(inner, *a, use_reentrant=reentrant)
                if block.training
                else inner(*a)
            )
        attr = Attributor(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            {"val": target},
            ["first_order", "path"],
        )
        with attr.batch(range(3)):
            loss_of(model, train, 0.02).backward()
        attr.optimizers[0].step()
        results.append(attr.last_step.values)
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])


def test_replay_keeps_nothing_and_agrees_with_the_tape_dropout_included():
    train, val = rows(4, 1), rows(2, 2)
    results = []
    for route in ("tap", "replay"):
        torch.manual_seed(0)
        model = small("gpt2", dropout=0.2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

        def target(model=model):
            model.eval()
            loss = loss_of(model, val, 0.1)
            model.train()
            return loss

        attr = Attributor(model, optimizer, {"val": target}, ["second_order", "path"], route=route)
        for _ in range(2):
            for ids in ([0, 1, 2], [3]):
                forward = lambda m=model, i=ids: loss_of(m, train[i], 0.02)  # noqa: E731
                with attr.batch(ids, forward=forward):
                    forward().backward()
                assert route == "tap" or not attr._steps.open.passes.records
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)
            optimizer.step()
            optimizer.zero_grad()
        results.append((attr.last_step.values, [p.detach().clone() for p in model.parameters()]))
    for key, value in results[0][0].items():
        assert per_sample.relative_error(results[1][0][key], value) < 1e-12, key
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1]))


@pytest.mark.parametrize("family", ["gpt2", "pythia"])
def test_probes_agree_with_the_rules(family):
    results = []
    for route in ("tap", "compiled"):
        torch.manual_seed(0)
        model, train, val = small(family), rows(4, 1), rows(2, 2)
        attr = Attributor(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            {"val": lambda m=model, v=val: loss_of(m, v, 0.1)},
            "first_order",
            route=route,
        )
        for ids in ([0, 1, 2], [3]):
            with attr.batch(ids):
                loss_of(model, train[ids], 0.02).backward()
        attr.optimizers[0].step()
        results.append(attr.last_step)
    for name, part in results[0].per_parameter["first_order", "val"].items():
        assert (
            per_sample.relative_error(results[1].per_parameter["first_order", "val"][name], part)
            < 1e-12
        ), name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_a_compiled_model_is_traced_without_a_break_and_not_again_for_new_directions():
    torch.manual_seed(0)
    eager, train, val = small("gpt2", torch.float32, n_layer=1), rows(3, 1), rows(2, 2)
    compiled = copy.deepcopy(eager)
    values = {}
    for model, route in ((eager, "tap"), (compiled, "compiled")):
        attr = Attributor(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            {"val": lambda m=model: loss_of(m, val, 0.1)},
            "first_order",
            route=route,
        )
        if route == "compiled":
            torch._dynamo.reset()
            model.compile(fullgraph=True, backend="aot_eager")
        values[route] = []
        for step in range(4):  # the first one is audited, uncompiled
            with torch._dynamo.config.patch(error_on_recompile=step > 1), attr.batch(range(3)):
                loss_of(model, train, 0.02).backward()
            attr.optimizers[0].step()
            attr.optimizers[0].zero_grad()
            values[route].append(attr.last["val"])
    for plain, traced in zip(values["tap"], values["compiled"]):
        assert (
            per_sample.relative_error(traced, plain) < 2e-5
        )  # float32: three steps of training apart in their last bits
