"""What the rest of the project leans on: visible uses, dtypes, compiling, forward mode."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from inrun import models
from tests.support.model_cases import FAMILIES, moved, relative_rms, small, tokens_and_targets


class Uses(TorchFunctionMode):
    """Which parameters the plain operations take, and the shape of the activation next to them."""

    def __init__(self):
        super().__init__()
        self.uses = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.nn.Parameter)]
        self.uses += [(func, args[0].shape, id(parameter)) for parameter in given]
        return func(*args, **kwargs)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_used_by_a_visible_operation_with_the_sample_axis_in_front(family):
    model = small(family, fused_head=False)
    tokens, targets = tokens_and_targets(n=3, t=24)
    with Uses() as seen:
        model.loss(tokens, targets)
    assert {use[2] for use in seen.uses} == {id(parameter) for parameter in model.parameters()}
    assert {use[0] for use in seen.uses} == {F.linear, F.embedding, F.layer_norm}
    assert {shape[:2] for _, shape, _ in seen.uses} == {(3, 24)}
    twice = 1 if family == "gpt2" else 0  # the tied table
    assert len(seen.uses) == len(list(model.parameters())) + twice


class FloatTypes(TorchDispatchMode):
    """The floating dtypes of all results."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        leaves = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.seen |= {leaf.dtype for leaf in leaves if leaf.is_floating_point()}
        return result


@pytest.mark.parametrize("family", FAMILIES)
def test_a_float64_model_stays_in_float64(family):
    model = small(family).double()
    tokens, targets = tokens_and_targets()
    with FloatTypes() as dtypes:
        model.loss(tokens, targets).backward()
    assert dtypes.seen == {torch.float64}


@pytest.mark.parametrize("family", FAMILIES)
def test_under_bf16_autocast_the_loss_and_the_gradients_are_fp32(family):
    """bf16 has 8 bits: each logit is off by 2^-8 of itself or so, and the mean over 68 tokens is no
    worse than one.
    """
    model = moved(small(family))
    tokens, targets = tokens_and_targets()
    exact = model.loss(tokens, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(tokens).dtype == torch.bfloat16
        loss = model.loss(tokens, targets)
        per_token = model.loss(tokens, targets, reduction="none")
    loss.backward()
    assert loss.dtype == per_token.dtype == torch.float32
    assert abs(loss / exact - 1) < 2**-7
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bf16_model_gives_its_loss_in_fp32(family):
    model = small(family).bfloat16()
    tokens, targets = tokens_and_targets()
    assert model(tokens).dtype == torch.bfloat16
    log_p = model(tokens).float().log_softmax(-1)
    kept = targets != models.IGNORED_TARGET
    expected = -log_p.gather(-1, targets.clamp(min=0)[..., None])[..., 0][kept].sum()
    loss = model.loss(tokens, targets)
    assert loss.dtype == torch.float32
    assert relative_rms(loss, expected) < 1e-6  # 68 float32 terms


def check_compiled(family, backend):
    """Compiled kernels may fuse differently, so float32 agrees to a few hundred roundings: 1e-5 of
    a gradient.
    """
    model = moved(small(family, n_layer=1))
    tokens, targets = tokens_and_targets()
    documents = (torch.arange(24) >= 10).long().expand(3, 24)
    for document_ids in (None, documents):
        model.zero_grad()
        model.loss(tokens, targets, document_ids=document_ids).backward()
        truth = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        model.zero_grad()
        torch.compile(model.loss, fullgraph=True, backend=backend)(
            tokens, targets, document_ids=document_ids
        ).backward()
        scale = max(gradient.norm() for gradient in truth.values())
        for name, parameter in model.named_parameters():
            assert (parameter.grad - truth[name]).norm() < 1e-5 * scale, name


@pytest.mark.parametrize("family", FAMILIES)
def test_compiles_without_a_graph_break(family):
    check_compiled(family, "aot_eager")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.* is deprecated:DeprecationWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_compiles_with_inductor(family):
    check_compiled(family, "inductor")


def test_compiling_in_place_reaches_the_forward_inside_the_loss():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    model = small("gpt2", n_layer=1)
    tokens, targets = tokens_and_targets()
    expected = model.loss(tokens, targets)
    model.compile(fullgraph=True, backend=backend)
    assert torch.equal(model.loss(tokens, targets), expected)
    assert len(graphs) == 1


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_forward_mode_and_vmap_see_through_the_model(family):
    """The derivative of each sample's loss along a direction of the weights: backwards one by one
    are the oracle.

    1e-11, not FLOAT64: the sum over all weights cancels a few digits.
    """
    model = moved(small(family, n_layer=2).double())
    tokens, targets = tokens_and_targets()
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    direction = {name: torch.randn_like(weight) for name, weight in weights.items()}

    def sample_losses(weights, tokens, targets):
        logits = torch.func.functional_call(model, weights, (tokens,))
        return F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").sum(1)

    def sample_loss(weights, tokens, targets):
        return sample_losses(weights, tokens[None], targets[None])[0]

    with sdpa_kernel(SDPBackend.MATH):
        _, forwards = torch.func.jvp(
            lambda w: sample_losses(w, tokens, targets), (weights,), (direction,)
        )
        gradients = torch.func.vmap(torch.func.grad(sample_loss), in_dims=(None, 0, 0))(
            weights, tokens, targets
        )
    backwards = sum(gradients[name].flatten(1) @ direction[name].flatten() for name in weights)
    for sample in range(3):
        model.zero_grad()
        model.loss(tokens[sample : sample + 1], targets[sample : sample + 1]).backward()
        expected = sum(
            (parameter.grad * direction[name]).sum() for name, parameter in model.named_parameters()
        )
        assert relative_rms(forwards[sample], expected) < 1e-11
        assert relative_rms(backwards[sample], expected) < 1e-11
