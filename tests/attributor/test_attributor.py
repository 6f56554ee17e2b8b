"""The engine on this project's own models, against a float64 loop of per-sample gradients."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

import inrun
from inrun import Attributor, Intervals
from inrun.attributor import BalanceError, NonFiniteError, UnseenParameterError
from inrun.ghost import MixedSamplesError, UncoveredUseError
from inrun.methods import FirstOrder, SecondOrder, TargetError
from inrun.models import build
from tests.support import per_sample
from tests.support.step_case import regression_case

TOKENS = 13


def small(family: str, dtype=torch.float64, **overrides) -> nn.Module:
    model = build(
        family,
        "tiny",
        **{
            "block_size": TOKENS,
            "n_layer": 2,
            "n_head": 2,
            "d_model": 16,
            "vocab_size": 64,
            **overrides,
        },
    ).to(dtype)
    with torch.no_grad():  # off the initialisation, where biases are 0 and heads alike
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def rows(n: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 64, (n, TOKENS), generator=torch.Generator().manual_seed(seed))


def loss_of(model, tokens, scale: float):
    return model.loss(tokens[:, :-1], tokens[:, 1:]) * scale


@pytest.mark.parametrize("route", ["tap", "fused"])
@pytest.mark.parametrize("validation", [1, 3])
@pytest.mark.parametrize("family", ["gpt2", "pythia"])
def test_first_order_equals_a_loop_of_per_sample_gradients_parameter_by_parameter(
    family, validation, route
):
    model, train, val = small(family), rows(5, 1), rows(validation, 2)
    scale, lr = 1 / train[:, 1:].numel(), 0.3
    truth, by_name = per_sample.first_order(
        model,
        [lambda i=i: loss_of(model, train[i : i + 1], scale) for i in range(5)],
        lambda: loss_of(model, val, 0.1),
        lr,
    )
    attr = Attributor(
        model,
        torch.optim.SGD(model.parameters(), lr=lr),
        {"val": lambda: loss_of(model, val, 0.1)},
        route=route,
    )
    with attr.batch(range(5)):
        loss_of(model, train, scale).backward()
    attr.optimizers[0].step()
    assert per_sample.relative_error(attr.last["val"], truth) < 1e-10
    parts = attr.last_step.per_parameter["first_order", "val"]
    assert set(parts) == {name for name, _ in model.named_parameters()}
    for name, part in parts.items():
        assert per_sample.relative_error(part, by_name[name]) < 1e-10, name


@pytest.mark.parametrize(
    ("cut", "route"),
    [([5], "tap"), ([5], "fused"), ([2, 3], "fused"), ([1, 1, 1, 1, 1], "tap"), ([4, 1], "fused")],
)
@pytest.mark.parametrize("family", ["gpt2", "pythia"])
def test_second_order_uses_the_whole_steps_gradient_however_the_batch_is_cut(family, cut, route):
    model, train, val = small(family), rows(5, 1), rows(2, 2)
    scale, lr, norm = 1 / train[:, 1:].numel(), 0.3, 0.4
    plain = small(family, fused_head=False)  # the fused head is differentiable once
    plain.load_state_dict(model.state_dict())
    full = per_sample.gradients(model, loss_of(model, train, scale))
    clip = min(1.0, norm / (float(sum(g.norm() ** 2 for g in full.values()) ** 0.5) + 1e-6))
    with sdpa_kernel(SDPBackend.MATH):
        truth = per_sample.second_order(
            plain,
            [lambda i=i: loss_of(plain, train[i : i + 1], scale) for i in range(5)],
            lambda: loss_of(plain, val, 0.1),
            lr,
            clip,
        )
    attr = Attributor(
        model,
        torch.optim.SGD(model.parameters(), lr=lr),
        {"val": lambda: loss_of(model, val, 0.1)},
        "second_order",
        route=route,
    )
    for ids in torch.arange(5).split(cut):
        with attr.batch(ids):
            loss_of(model, train[ids], scale).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), norm)
    attr.optimizers[0].step()
    assert clip < 0.9
    assert per_sample.relative_error(attr.last["val"], truth) < 1e-9


@pytest.mark.parametrize("credit", ["immediate", "impulse"])
@pytest.mark.parametrize("state", ["previous", "current"])
def test_first_order_under_adamw_equals_its_formula(state, credit):
    """previous: eta (1-b1)/(1-b1^t) / (sqrt(vhat_{t-1}) + eps); current: (u(G) - u(0)) / G; impulse
    divides by (1 - b1).
    """
    model, train, val = small("gpt2"), rows(4, 1), rows(2, 2)
    lr, b1, b2, eps, wd = 1e-3, 0.9, 0.95, 1e-8, 0.1
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=lr, betas=(b1, b2), eps=eps, weight_decay=wd
    )
    attr = Attributor(
        model,
        optimizer,
        {"val": lambda: loss_of(model, val, 0.1)},
        FirstOrder(state=state, credit=credit),
    )
    m = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    v = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for t in range(1, 7):
        V = per_sample.gradients(model, loss_of(model, val, 0.1))
        g = [per_sample.gradients(model, loss_of(model, train[i : i + 1], 0.02)) for i in range(4)]
        for name in V:
            G = sum(x[name] for x in g)
            after = b2 * v[name] + (1 - b2) * G * G
            if state == "previous":
                slope = (
                    torch.zeros_like(G)
                    if t == 1
                    else lr
                    * (1 - b1)
                    / (1 - b1**t)
                    / ((v[name] / (1 - b2 ** (t - 1))).sqrt() + eps)
                )
                slope = torch.where(v[name] == 0, 0, slope)
            else:
                moved = (b1 * m[name] + (1 - b1) * G) / ((after / (1 - b2**t)).sqrt() + eps)
                idle = b1 * m[name] / ((b2 * v[name] / (1 - b2**t)).sqrt() + eps)
                slope = torch.where(G == 0, 0, lr / (1 - b1**t) * (moved - idle) / G)
            V[name] = slope * V[name] / (1 - b1 if credit == "impulse" else 1)
            m[name], v[name] = b1 * m[name] + (1 - b1) * G, after
        truth = torch.tensor([per_sample.dot(x, V) for x in g], dtype=torch.float64)
        with attr.batch(range(4)):
            loss_of(model, train, 0.02).backward()
        optimizer.step()
        optimizer.zero_grad()
        # the first step is without state, the next two have a young one: no slope, or one averaged
        # over coalitions
        if t > (1 if state == "previous" else 3):
            assert per_sample.relative_error(attr.last["val"], truth) < 1e-8
    assert attr.last_step.stateless > 0  # rows of tokens that no sample holds


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


#: float32 against float64, by method: |error| / RMS of the values. A dot adds about 6000 products
#: of rounded factors (6e-8 each, as a random walk: 5e-6), of which the samples' cancellation over
#: tokens leaves a few; path and second order also difference and differentiate twice.
FLOAT32 = {"first_order": 2e-6, "second_order": 1e-5, "path": 1e-5}


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


def test_values_add_over_targets_and_methods_share_a_run():
    model, train = small("gpt2"), rows(4, 1)
    a, b = rows(2, 2), rows(3, 3)
    targets = {
        "a": lambda: loss_of(model, a, 1),
        "b": lambda: loss_of(model, b, 1),
        "both": lambda: loss_of(model, a, 1) + loss_of(model, b, 1),
    }
    methods = [
        "first_order",
        "second_order",
        inrun.Path(nodes=2),
        FirstOrder(update="sgd", name="sgd"),
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    attr = Attributor(model, optimizer, targets, methods)
    for _ in range(3):
        with attr.batch(range(4)):
            loss_of(model, train, 0.02).backward()
        optimizer.step()
        optimizer.zero_grad()
    for method in ("first_order", "second_order", "path", "sgd"):
        values = attr.last_step.values
        assert (
            per_sample.relative_error(
                values[method, "a"] + values[method, "b"], values[method, "both"]
            )
            < 1e-9
        ), method


def test_many_targets_are_valued_as_each_alone_where_elements_have_no_state():
    """Slopes are the same for all targets and made once: at the very first step, for different
    segments and methods, nothing may be mixed up.
    """
    case = regression_case(lambda parameters: torch.optim.AdamW(parameters, lr=1e-2), warm_steps=0)
    methods = [
        inrun.Path(nodes=2),
        inrun.Path(nodes=3, name="path_3"),
        SecondOrder(),
        SecondOrder(update="sgd", name="sgd"),
    ]
    x, y = torch.randn(3, 4, 5, dtype=torch.float64), torch.randn(3, 4, 3, dtype=torch.float64)

    def values(chosen):
        model, optimizer = case.copies()
        targets = {str(k): lambda k=k: nn.functional.mse_loss(model(x[k]), y[k]) for k in chosen}
        with Attributor(model, optimizer, targets, methods) as attributor:
            case.step(model, optimizer, attributor)
        return attributor.last_step.values

    together = values([0, 1, 2])
    for k in range(3):
        for (method, target), alone in values([k]).items():
            assert torch.allclose(together[method, target], alone, rtol=1e-12, atol=0), (
                method,
                target,
            )


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


class Regressor(nn.Module):
    def __init__(self, norm=None):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 8), norm, nn.Linear(8, 2)

    def forward(self, x):
        h = self.first(x).relu_()
        return self.last(h if self.norm is None else self.norm(h))


def regression(model, n=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(n, 4, generator=generator), torch.randn(n, 2, generator=generator)
    return lambda: nn.functional.mse_loss(model(x), y)


def test_batch_norm_in_training_is_refused_with_the_reason_and_frozen_batch_norm_is_not():
    model = Regressor(nn.BatchNorm1d(8))
    attr = Attributor(
        model, torch.optim.SGD(model.parameters(), lr=0.1), {"val": regression(model, seed=1)}
    )
    with pytest.raises(MixedSamplesError, match="statistics of its batch"), attr.batch(range(6)):
        regression(model)().backward()
    model.norm.eval()
    with attr.batch(range(6)):
        regression(model)().backward()
    attr.optimizers[0].step()
    assert attr.last["val"].shape == (6,)


def test_an_operation_without_a_rule_names_the_parameter_and_the_universal_route_values_it():
    class Odd(Regressor):
        def forward(self, x):
            h = torch.tensordot(x, self.first.weight, dims=([1], [1]))  # no rule
            return self.last(h)

    model = Odd().double()
    model.first.bias.requires_grad_(False)
    x, y, xv, yv = (torch.randn(6, s, dtype=torch.float64) for s in (4, 2, 4, 2))
    val = lambda: nn.functional.mse_loss(model(xv), yv)  # noqa: E731
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attr = Attributor(model, optimizer, {"val": val})
    with (
        pytest.raises(UncoveredUseError, match=r"first\.weight.*tensordot.*route='forward'"),
        attr.batch(range(6)),
    ):
        model(x)
    attr.close()
    truth, _ = per_sample.first_order(
        model,
        [lambda i=i: ((model(x[i : i + 1]) - y[i]) ** 2).sum() / 12 for i in range(6)],
        val,
        0.1,
    )
    attr = Attributor(model, optimizer, {"val": val}, route="forward")
    forward = lambda: nn.functional.mse_loss(model(x), y)  # noqa: E731
    with attr.batch(range(6), forward=forward):
        forward().backward()
    optimizer.step()
    assert per_sample.relative_error(attr.last["val"], truth) < 1e-10


def test_a_gradient_from_outside_the_batch_is_a_books_error_that_names_the_parameter():
    model = Regressor()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attr = Attributor(model, optimizer, {"val": regression(model, seed=1)})
    before = copy.deepcopy(model.state_dict())
    (0.01 * model.first.weight.square().sum()).backward()
    with attr.batch(range(6)):
        regression(model)().backward()
    with pytest.raises(BalanceError, match=r"first\.weight.*regulariser"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))


def test_clipping_one_parameter_alone_is_a_books_error():
    model = Regressor()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attr = Attributor(model, optimizer, {"val": regression(model, seed=1)})
    with attr.batch(range(6)):
        regression(model)().backward()
    model.last.weight.grad.mul_(0.5)
    with pytest.raises(BalanceError, match=r"last\.weight.*multiplied by 0\.5"):
        optimizer.step()


def test_a_parameter_used_out_of_sight_is_named():
    model = Regressor()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attr = Attributor(model, optimizer, {"val": regression(model, seed=1)})
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
    attr = Attributor(model, optimizer, {"val": regression(model, seed=1)})
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
    attr = Attributor(model, optimizer, {"val": regression(model, seed=1)})
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
    attr = Attributor(model, torch.optim.SGD(model.parameters(), lr=0.1), {"val": closure(model)})
    with pytest.raises(TargetError, match=message), attr.batch(range(6)):
        pass


def test_bad_arguments_say_what_to_do():
    model = Regressor()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    val = {"val": regression(model, seed=1)}
    with pytest.raises(ValueError, match="'third_order': choose one of 'first_order'"):
        Attributor(model, optimizer, val, "third_order")
    with pytest.raises(ValueError, match="distinct names"):
        Attributor(model, optimizer, val, ["path", inrun.Path(nodes=3)])
    with pytest.raises(ValueError, match="at least one target"):
        Attributor(model, optimizer, {})
    with pytest.raises(ValueError, match="matches no trainable parameter"):
        Attributor(model, optimizer, val, params="decoder")
    with pytest.raises(ValueError, match="another model"):
        Attributor(Regressor(), optimizer, val)
    attr = Attributor(model, optimizer, val)
    with (
        pytest.raises(ValueError, match="one per sample"),
        attr.batch(torch.zeros(2, 3, dtype=torch.long)),
    ):
        pass
    attr.close()
    with pytest.raises(RuntimeError, match="closed"), attr.batch([0]):
        pass


def test_samples_must_be_the_leading_axis():
    model = Regressor()
    attr = Attributor(
        model, torch.optim.SGD(model.parameters(), lr=0.1), {"val": regression(model, seed=1)}
    )
    with pytest.raises(ValueError, match="samples along axis 0"), attr.batch(range(4)):  # six rows
        regression(model)().backward()


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
                assert route == "tap" or not attr._open.passes.records
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
            route=route,
        )
        if route == "compiled":
            torch._dynamo.reset()
            model.compile(fullgraph=True, backend="aot_eager")
        values[route] = []
        for step in range(3):
            with torch._dynamo.config.patch(error_on_recompile=step > 0), attr.batch(range(3)):
                loss_of(model, train, 0.02).backward()
            attr.optimizers[0].step()
            attr.optimizers[0].zero_grad()
            values[route].append(attr.last["val"])
    for plain, traced in zip(values["tap"], values["compiled"]):
        assert (
            per_sample.relative_error(traced, plain) < 2e-5
        )  # float32: two steps of training apart in their last bits


@pytest.mark.parametrize("method", ["first_order", "path"])
def test_a_stale_direction_is_the_targets_gradient_at_the_last_refresh(method):
    """SGD, so that V = lr g: between refreshes a sample's value is its gradient's dot with the
    older g.
    """
    model, batches, val = small("gpt2"), [rows(3, seed) for seed in range(4)], rows(2, 9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attr = Attributor(
        model,
        optimizer,
        {"val": lambda: loss_of(model, val, 0.1)},
        method,
        intervals=Intervals(refresh=2, ledger=0),
    )
    kept, got, expected = None, [], []
    for number, batch in enumerate(batches):
        own = [
            per_sample.gradients(model, loss_of(model, batch[i : i + 1], 0.01)) for i in range(3)
        ]
        if number % 2 == 0:
            at = copy.deepcopy(model)
            with torch.no_grad():
                for name, p in at.named_parameters():
                    p.sub_(
                        0.0 if method == "first_order" else 0.5 * 0.1 * sum(g[name] for g in own)
                    )
            kept = per_sample.gradients(at, loss_of(at, val, 0.1))
        expected.append([0.1 * per_sample.dot(g, kept) for g in own])
        with attr.batch(range(3)):
            loss_of(model, batch, 0.01).backward()
        optimizer.step()
        optimizer.zero_grad()
        got.append(attr.last["val"])
    torch.testing.assert_close(
        torch.stack(got), torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-14
    )


def test_a_checkpoint_refreshes_the_direction_so_that_a_resumed_run_gives_the_same_values():
    model, val = small("gpt2"), rows(2, 9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def attributor():
        return Attributor(
            model,
            optimizer,
            {"val": lambda: loss_of(model, val, 0.1)},
            intervals=Intervals(refresh=3, ledger=0),
        )

    def step(attr, seed):
        with attr.batch(range(3)):
            loss_of(model, rows(3, seed), 0.01).backward()
        optimizer.step()
        optimizer.zero_grad()
        return attr.last["val"]

    attr = attributor()
    step(attr, 0)
    state, weights = attr.state_dict(), copy.deepcopy(model.state_dict())
    uninterrupted = [step(attr, 1), step(attr, 2)]
    attr.close()
    model.load_state_dict(weights)
    resumed = attributor()
    resumed.load_state_dict(state)
    assert torch.equal(
        torch.stack(uninterrupted), torch.stack([step(resumed, 1), step(resumed, 2)])
    )


def test_second_order_refuses_a_stale_direction():
    model = small("gpt2")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="'second_order' cannot: its Hessian-vector product"):
        Attributor(
            model,
            optimizer,
            {"val": lambda: loss_of(model, rows(2, 9), 0.1)},
            "second_order",
            intervals=Intervals(refresh=2),
        )


def test_a_target_that_also_uses_the_token_table_as_a_whole_has_its_look_ups_added():
    """The gradient of a plain sum is one number expanded over the table: rows cannot be added to it
    in place.
    """
    found = {}
    for route in ("tap", "fused"):
        torch.manual_seed(0)
        model, val = small("gpt2"), rows(2, 9)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def target(model=model, val=val):
            return model.features(val[:, :-1]).square().mean() + model.wte.weight.sum()

        attr = Attributor(model, optimizer, {"val": target}, route=route)
        with attr.batch(range(3)):
            loss_of(model, rows(3, 1), 0.01).backward()
        optimizer.step()
        found[route] = attr.last["val"]
        attr.close()
    assert per_sample.relative_error(found["fused"], found["tap"]) < 1e-10


class Waits(TorchDispatchMode):
    """Counts the reads of a number from a tensor: on a GPU each waits for everything that was asked
    of it before.
    """

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("family", "method"), [("gpt2", "first_order"), ("gpt2", "second_order"), ("pythia", "path")]
)
def test_a_step_waits_for_the_device_as_often_in_a_deep_model_as_in_a_shallow_one(
    family, method, monkeypatch
):
    waits = Waits()

    def tolist(tensor, original=torch.Tensor.tolist):
        waits.count += 1
        return original(tensor)

    def counted(layers: int) -> int:
        torch.manual_seed(0)
        model, train, val = small(family, torch.float32, n_layer=layers), rows(3, 1), rows(2, 2)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=1e-3, fused=True
        )  # asks nothing itself
        attr = Attributor(
            model, optimizer, {"val": lambda: loss_of(model, val, 0.1)}, method, route="fused"
        )
        for step in range(
            5
        ):  # from the fourth step on nobody asks for elements without optimizer state
            waits.count = 0
            with waits if step == 4 else nullcontext():
                with attr.batch(range(3)):
                    loss_of(model, train, 0.02).backward()
                optimizer.step()
                optimizer.zero_grad()
        return waits.count

    monkeypatch.setattr(torch.Tensor, "tolist", tolist)
    assert counted(1) == counted(3) <= 20
