"""Gradient-based baselines against their formulas written out, and influence against exact
retraining.
"""

import numpy as np
import pytest
import torch
from torch.func import functional_call, jacrev

from inrun.baselines import BaselineError, score
from inrun.baselines.gradients import Projection, loss_dots, sample_gradients
from inrun.baselines.influence import (
    InfluenceOptions,
    conjugate_gradients,
    curvature_product,
    lissa,
)
from inrun.baselines.tracin import spread
from inrun.baselines.trak import kernel, margins
from tests.support.baseline_case import Classifier, LinearRegression, loop_gradients


@pytest.fixture(scope="module")
def run():
    return Classifier()


@pytest.fixture(scope="module")
def line():
    return LinearRegression()


def towards(run, model):
    return loop_gradients(model, run.target_losses(model, "val")).mean(0)


def test_gradients_of_samples_and_their_dots_are_those_of_a_loop(run):
    model = run.model()
    loop = loop_gradients(model, run.losses(model, run.sample_ids))
    found = sample_gradients(model, 14, lambda: run.losses(model, run.sample_ids))
    assert torch.allclose(found, loop, rtol=1e-12, atol=1e-14)
    V = torch.randn(2, loop.shape[1], dtype=torch.float64)
    assert torch.allclose(loss_dots(run, model, V), V @ loop.T, rtol=1e-10, atol=1e-12)


def test_tracin_is_the_explicit_sum_over_checkpoints(run):
    expected = 0
    for k, lr in ((0, 0.03), (1, 0.02), (2, 0.01)):
        model = run.model(k)
        expected = expected + lr * loop_gradients(
            model, run.losses(model, run.sample_ids)
        ) @ towards(run, model)
    assert np.allclose(score(run, "val", "tracin", checkpoints=3).values, expected, rtol=1e-10)
    last = 0.01 * loop_gradients(model, run.losses(model, run.sample_ids)) @ towards(run, model)
    assert np.allclose(score(run, "val", "tracin", checkpoints=1).values, last, rtol=1e-10)


def test_checkpoints_are_spread_evenly_and_end_with_the_last():
    assert spread(50, 5) == [9, 19, 29, 39, 49]
    assert spread(3, 1) == [2]
    assert spread(4, 4) == [0, 1, 2, 3]
    with pytest.raises(BaselineError, match="checkpoints=4, and the run has 3"):
        spread(3, 4)


def test_less_without_projection_is_its_definition(run):
    expected = np.zeros(14)
    for k, (step, lr) in enumerate(((4, 0.03), (8, 0.02), (12, 0.01))):
        model = run.model(k)
        target = towards(run, model).detach().numpy()
        m, v = (
            torch.cat([t.flatten() for t in kind.values()]).numpy()
            for kind in (run.moments(k).first, run.moments(k).second)
        )
        for i, g in enumerate(loop_gradients(model, run.losses(model, run.sample_ids)).numpy()):
            mm = (0.9 * m + 0.1 * g) / (1 - 0.9 ** (step + 1))
            vv = (0.999 * v + 0.001 * g * g) / (1 - 0.999 ** (step + 1))
            gamma = mm / (np.sqrt(vv) + 1e-8)
            expected[i] += lr * gamma @ target / np.linalg.norm(gamma) / np.linalg.norm(target)
    assert np.allclose(
        score(run, "val", "less", checkpoints=3, projection=0).values, expected, rtol=1e-9
    )


@pytest.mark.parametrize("checkpoints", [1, 3])
def test_trak_with_the_identity_projection_is_its_definition(run, checkpoints):
    ridge, kernels, q = 0.2, [], []
    for k in range(-checkpoints, 0):
        model = run.model(k)
        p = run.logits(model, run.sample_ids).softmax(1)[range(14), run.y]
        phi = loop_gradients(model, (p / (1 - p)).log()).numpy()
        pt = run.target_logits(model, "val").softmax(1)[range(6), run.target_y]
        phi_t = loop_gradients(model, (pt / (1 - pt)).log()).numpy().mean(0)
        gram = phi.T @ phi
        inverse = np.linalg.inv(gram + ridge * np.trace(gram) / len(gram) * np.eye(len(gram)))
        kernels.append(phi_t @ inverse @ phi.T)
        q.append((1 - p).detach().numpy())
    expected = np.mean(kernels, 0) * np.mean(q, 0)
    found = score(run, "val", "trak", checkpoints=checkpoints, projection=0, ridge=ridge).values
    assert np.allclose(found, expected, rtol=1e-8)


def test_trak_of_a_linear_regression_is_the_influence_of_its_residuals(line):
    x, r = line.x.numpy(), (line.y - line.x @ line.w).numpy()
    rt = (line.target_y - line.target_x @ line.w).numpy()
    gram = x.T @ x
    inverse = np.linalg.inv(gram + 0.1 * np.trace(gram) / 4 * np.eye(4))
    expected = (rt[:, None] * line.target_x.numpy()).mean(0) @ inverse @ x.T * r
    assert np.allclose(score(line, "val", "trak", checkpoints=1).values, expected, rtol=1e-10)


def test_both_sides_of_the_kernel_solve_agree():
    features, target = torch.randn(9, 6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    wide = torch.cat(
        [features, torch.zeros(9, 6, dtype=torch.float64)], 1
    )  # more coordinates than samples, the same answer
    both = kernel(wide, torch.cat([target, torch.zeros(6, dtype=torch.float64)]), 0.2)
    assert torch.allclose(both, kernel(features, target, 0.1), rtol=1e-10)


def test_margins_are_log_odds_and_stay_finite_where_probabilities_round_to_one():
    logits = torch.tensor([[200.0, 0.0, 0.0], [0.3, -0.2, 1.0]], dtype=torch.float64)
    p = logits[1].softmax(0)[2]
    assert torch.allclose(
        margins(logits, torch.tensor([0, 2])),
        torch.stack([200 - torch.tensor(2.0).double().log(), (p / (1 - p)).log()]),
    )


def test_projection_is_a_sign_matrix_that_depends_on_its_seed_and_keeps_dots_on_average():
    matrix = Projection(64, seed=3)(torch.eye(500, dtype=torch.float64))
    assert matrix.shape == (500, 64)
    assert set(matrix.abs().flatten().tolist()) == {1 / 8}
    x = torch.randn(5, 500, dtype=torch.float64)
    assert torch.allclose(Projection(64, seed=3)(x), x @ matrix)
    assert not torch.equal(Projection(64, seed=4)(x), x @ matrix)
    gram = matrix @ matrix.T  # off the diagonal: means of 64 products of signs
    off = gram[~torch.eye(500, dtype=torch.bool)]
    assert off.std() == pytest.approx(1 / 8, rel=0.02)  # 124750 pairs
    assert abs(off.mean()) < 4 / 8 / 124750**0.5
    assert torch.equal(Projection(0)(x), x)
    assert torch.equal(Projection(500)(x), x)


def test_curvature_products_are_those_of_explicit_matrices(run):
    model = run.model()
    names, shapes = zip(*[(n, p.shape) for n, p in model.named_parameters()])
    flat = torch.cat([p.flatten() for p in model.parameters()]).detach()
    sizes = [s.numel() for s in shapes]

    def logits(w):
        parts = {n: part.view(s) for n, s, part in zip(names, shapes, w.split(sizes))}
        return functional_call(model, parts, (run.x,))

    def loss(w):
        return torch.nn.functional.cross_entropy(logits(w), run.y)

    x = torch.randn_like(flat)
    assert torch.allclose(
        curvature_product(run, model, run.sample_ids, x, "hessian"),
        jacrev(jacrev(loss))(flat) @ x,
        rtol=1e-9,
        atol=1e-12,
    )
    J, p = jacrev(logits)(flat), logits(flat).softmax(1)
    H = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    explicit = torch.einsum("nap,nab,nbq->pq", J, H, J) / 14
    assert torch.allclose(
        curvature_product(run, model, run.sample_ids, x, "gauss_newton"),
        explicit @ x,
        rtol=1e-9,
        atol=1e-12,
    )


@pytest.mark.parametrize("curvature", ["gauss_newton", "hessian"])
def test_influence_of_a_linear_model_is_exact_retraining_without_the_sample(line, curvature):
    found = score(
        line, "val", "influence", damping=line.damping, curvature=curvature, tolerance=1e-10
    ).values
    towards_target = 2 * (line.target_x @ line.w - line.target_y) @ line.target_x / 7
    H = 2 * line.x.T @ line.x / 20 + line.damping * torch.eye(4, dtype=torch.float64)
    for i in range(20):
        moved = (
            line.minimum([j for j in range(20) if j != i]) - line.w
        )  # Sherman-Morrison: H^-1 g_i / n / (1 - leverage)
        leverage = 2 / 20 * line.x[i] @ torch.linalg.solve(H, line.x[i])
        assert found[i] == pytest.approx(
            float(20 * (1 - leverage) * towards_target @ moved), rel=1e-6
        )


def test_cg_and_lissa_solve_the_system(run):
    model, options = run.model(), InfluenceOptions(damping=0.05, steps=100, tolerance=1e-9)
    v = towards(run, model).detach()
    x = conjugate_gradients(run, model, v, options)
    back = curvature_product(run, model, run.sample_ids, x, "gauss_newton") + 0.05 * x
    assert (back - v).norm() <= 1e-8 * v.norm()
    # whole batches: the error shrinks by (1 - damping / scale) a step at least; 0.05 / 2, 600
    # steps: e^-15
    series = lissa(
        run,
        model,
        v,
        InfluenceOptions(
            solver="lissa", damping=0.05, steps=600, batch=14, repetitions=1, scale=2.0
        ),
    )
    assert (series - x).norm() <= 1e-6 * x.norm()
    half = lissa(
        run,
        model,
        v,
        InfluenceOptions(solver="lissa", damping=0.05, steps=300, batch=7, repetitions=3),
    )
    assert (
        torch.cosine_similarity(half, x, dim=0) > 0.99
    )  # batches of half the samples: noise, and the right direction


def test_influence_says_what_to_do_where_it_cannot_be_solved(run):
    model = run.model(0)
    v = towards(run, model).detach()
    with pytest.raises(BaselineError, match=r"negative eigenvalue\. Next: curvature=gauss_newton"):
        conjugate_gradients(run, model, v, InfluenceOptions(curvature="hessian", damping=1e-6))
    with pytest.raises(BaselineError, match="after 2 steps"):
        conjugate_gradients(run, model, v, InfluenceOptions(damping=1e-6, steps=2))
    with pytest.raises(BaselineError, match="LiSSA grows with scale"):
        lissa(run, model, v, InfluenceOptions(damping=1.0, steps=100, batch=14, scale=0.1))
