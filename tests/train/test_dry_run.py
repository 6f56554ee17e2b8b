"""What a run will need is counted before it starts."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from inrun import models
from inrun.config import ConfigError
from inrun.models import GPT2, GPT2Config, build_from, flops_per_token
from inrun.train import RunConfig
from inrun.train.dry_run import estimate
from inrun.train.optim import OPTIMIZERS, build_optimizer, optimizer
from tests.support.train_example import config, settings


def test_estimate_counts_what_can_be_counted(tmp_path):
    run = config(tmp_path)
    guess = estimate(run)
    parameters = sum(p.numel() for p in _model(run).parameters())
    assert guess.parameters == parameters
    assert guess.weights == 4 * parameters
    assert guess.rows == 12 * 8 * 2
    assert (
        guess.directions == (2 * 4 + 2) * 4 * parameters
    )  # two methods by two targets, twice; the targets' gradients
    assert guess.memory > guess.weights * 4
    values = settings(tmp_path, attribution__method=[])
    plain = estimate(RunConfig.from_mapping(values))
    assert (plain.directions, plain.tape, plain.rows, plain.store) == (0, 0, 0, 0)


def _model(run):
    return build_from(run.model_config())


@pytest.mark.parametrize(
    ("name", "momentum"), [("adamw", 0.0), ("lion", 0.0), ("sgd", 0.0), ("sgd", 0.9)]
)
def test_optimizer_state_is_what_a_real_step_leaves(tmp_path, name, momentum):
    run = config(tmp_path, optim__name=name, optim__momentum=momentum)
    model = _model(run)
    model.loss(*torch.zeros(2, 1, 8, dtype=torch.long)).backward()
    real = build_optimizer(model, run.optim)
    real.step()
    kept = [tensor for state in real.state.values() for tensor in state.values()]
    expected = sum(tensor.nbytes for tensor in kept if tensor is not None)
    assert estimate(run).optimizer == expected
    assert estimate(run).checkpoint == expected + estimate(run).weights


class Remembering(torch.optim.Optimizer):
    """Keeps three copies of each gradient; asks for its content where `reads` says so."""

    def __init__(self, groups, lr, reads=False):
        super().__init__(groups, {"lr": lr, "reads": reads})

    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                scale = float(p.grad.norm()) if group["reads"] else 1.0
                self.state[p] = {f"copy{k}": p.grad * scale for k in range(3)}


def test_state_of_an_optimizer_from_outside_is_counted_too(tmp_path):
    with OPTIMIZERS.restored():
        optimizer("remembering")(lambda groups, config: Remembering(groups, config.lr))
        optimizer("reading")(lambda groups, config: Remembering(groups, config.lr, reads=True))
        guess = estimate(config(tmp_path, optim__name="remembering"))
        assert guess.optimizer == 3 * guess.weights
        with pytest.raises(ConfigError, match=r"optim\.name=reading: .*without a real step"):
            estimate(config(tmp_path, optim__name="reading"))


@dataclass(frozen=True)
class NarrowConfig(GPT2Config):
    """A GPT-2 whose MLP is as wide as the model."""

    @property
    def d_mlp(self) -> int:
        return self.d_model


def test_mlp_of_another_width_is_counted_as_it_is(tmp_path):
    module = SimpleNamespace(PRESETS={"tiny": NarrowConfig()}, build=GPT2)
    with models.FAMILIES.restored():
        models.FAMILIES.add("narrow", models.Family(NarrowConfig, GPT2, module))
        run = config(tmp_path, model__name="narrow", model__fused_head=False, model__dropout=0.0)
        model, tokens = _model(run), torch.zeros(2, 32, dtype=torch.long)
        assert model.h[0].mlp.fc.weight.shape == (32, 32)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            model.loss(tokens, tokens).backward()
        assert counter.get_total_flops() == flops_per_token(model.config) * tokens.numel()
        narrow = estimate(run)
    wide = estimate(replace(run, model=run.model | {"name": "gpt2"}))
    # a token's activations per layer: before and after the MLP's activation, 3 d less in each
    tokens, layers, d = 32 * 4, 2, 32
    assert wide.training - narrow.training == 4 * 2 * 3 * d * layers * tokens
    assert wide.tape - narrow.tape == 4 * 2 * 3 * d * layers * 32 * 8
    assert wide.flops_per_step - narrow.flops_per_step == 6 * 2 * 3 * d * d * layers * 32 * 8


def test_what_finds_no_room_until_a_direction_is_known_is_said_to_be_run_again(tmp_path):
    values = settings(tmp_path, train__micro_batch=2, attribution__method=["path"])

    def guess(route: object):
        asked = {**values["attribution"], "route": route}
        return estimate(RunConfig.from_mapping({**values, "attribution": asked}))

    whole = guess("tap")
    assert (whole.replayed, whole.micro_batches) == (0, 4)
    assert "are kept (tape)" in str(whole)
    assert "once more" not in str(whole)
    bounded = guess({"kind": "tap", "memory": whole.tape // 2})
    assert (bounded.replayed, bounded.tape) == (2, whole.tape // 2)
    assert "2 of 4 micro-batches are run once more (replay)" in str(bounded)
    assert (guess("replay").replayed, guess("replay").tape) == (4, 0)
    values["attribution"]["method"] = [{"kind": "first_order", "update": "sgd"}]
    assert "nothing is kept of a batch" in str(guess("tap"))
