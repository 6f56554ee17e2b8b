"""The ResNet of the paper's classification study: per-sample gradients with frozen statistics, and
what is said without a hub.
"""

import pytest
import torch
import torch.nn.functional as F
from transformers import ResNetConfig

from inrun.attributor import Attributor
from inrun.baselines.gradients import sample_gradients
from inrun.baselines.supervised import NetworkConfig, network
from inrun.data.errors import SourceUnreachable
from inrun.data.labelled import ProblemConfig, sample_problem
from inrun.integrations.resnet import ResNet18
from tests.support.baseline_case import loop_gradients


@pytest.fixture
def model():
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], layer_type="basic")
    model = ResNet18(3, pretrained="", config=config).double()
    for name, buffer in model.named_buffers():  # statistics that are not those of a new layer
        if buffer.is_floating_point():
            buffer.copy_(1 + torch.rand_like(buffer) if "var" in name else torch.randn_like(buffer))
    return model


def test_statistics_are_frozen_in_training_as_in_scoring(model):
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    trained, scored = model.train()(x), model.eval()(x)
    assert torch.equal(trained, scored)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert torch.allclose(
        model(x)[:1], model(x[:1]), rtol=1e-10
    )  # a sample does not depend on its batch


def test_gradients_of_samples_are_those_of_a_loop(model):
    x, y = torch.randn(3, 3, 32, 32, dtype=torch.float64), torch.tensor([0, 2, 1])

    def losses():
        return F.cross_entropy(model(x), y, reduction="none")

    found, loop = sample_gradients(model, 3, losses), loop_gradients(model, losses())
    assert torch.allclose(found, loop, rtol=1e-9, atol=1e-12)


def test_its_steps_can_be_valued(model):
    x, y = torch.randn(4, 3, 32, 32, dtype=torch.float64), torch.tensor([0, 2, 1, 1])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    attributor = Attributor(
        model, optimizer, {"val": lambda: F.cross_entropy(model(x[:2]), y[:2])}, "first_order"
    )
    before = F.cross_entropy(model(x[:2]), y[:2]).item()
    with attributor.batch([0, 1, 2, 3]):
        F.cross_entropy(model(x), y).backward()
    optimizer.step()
    drop = before - F.cross_entropy(model(x[:2]), y[:2]).item()
    # first order: the values sum to the drop up to a part of the order of lr
    assert float(attributor.last["val"].sum()) == pytest.approx(drop, rel=0.1)
    attributor.close()


def test_without_a_hub_the_pretrained_weights_are_refused_with_the_way_offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    problem = sample_problem(ProblemConfig(train=20, validation=5, test=5), 0)
    with pytest.raises(
        SourceUnreachable, match=r"microsoft/resnet-18.*data=digits.*network\.pretrained="
    ):
        network(NetworkConfig(name="resnet18"), problem)
