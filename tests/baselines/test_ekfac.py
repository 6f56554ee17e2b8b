"""EK-FAC against the Fisher matrix written out, where the Kronecker form is exact, and against
per-sample loops where it is not.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from inrun.baselines import BaselineError, Checkpoint, score
from inrun.baselines.ekfac import EKFAC, EKFACOptions


class Classifier:
    """Classification by any model in float64; targets are the last samples."""

    targets = ("val", "other")
    checkpoints = (Checkpoint(1, 0.1),)

    def __init__(self, net: nn.Module, x, y, x_val, y_val):
        self.net, self.x, self.y, self.x_val, self.y_val = net.double(), x, y, x_val, y_val
        self.sample_ids = np.arange(len(x))

    def model(self, checkpoint=-1):
        return self.net.eval()

    def losses(self, model, ids):
        return (
            F.cross_entropy(
                model(self.x[ids]).flatten(0, -2), self.y[ids].flatten(), reduction="none"
            )
            .reshape(len(ids), -1)
            .sum(1)
        )

    def target_losses(self, model, target):
        rows = slice(0, 2) if target == "val" else slice(2, None)
        losses = F.cross_entropy(
            model(self.x_val[rows]).flatten(0, -2), self.y_val[rows].flatten(), reduction="none"
        )
        return losses.reshape(len(self.x_val[rows]), -1).mean(1)

    def logits(self, model, ids):
        return model(self.x[ids])

    def labels(self, ids):
        return self.y[ids]

    def target_labels(self, target):
        return self.y_val

    def target_logits(self, model, target):
        return model(self.x_val)


def softmax_regression(labels: str) -> Classifier:
    """Linear softmax model at zero weights: every prediction is uniform, so the Fisher matrix is
    exactly a Kronecker product, (diag p - p p^T) x E a a^T.
    """
    dice = torch.Generator().manual_seed(1)
    net = nn.Linear(3, 4, bias=False)
    nn.init.zeros_(net.weight)
    inputs = torch.randn(5, 3, generator=dice, dtype=torch.float64)
    x, y = (
        inputs.repeat_interleave(4, 0),
        torch.arange(4).repeat(5),
    )  # every input once with every label
    if labels == "one":
        x, y = inputs, torch.randint(4, (5,), generator=dice)
    return Classifier(
        net,
        x,
        y,
        torch.randn(4, 3, generator=dice, dtype=torch.float64),
        torch.tensor([0, 3, 1, 1]),
    )


def exact_influence(run: Classifier, target: str, damping: float) -> np.ndarray:
    """g_i^T (F + damping mean eig)^-1 grad L, F by enumerating the labels."""
    model, p = run.model(), torch.full((4,), 0.25, dtype=torch.float64)
    factors = [torch.kron(torch.diag(p) - torch.outer(p, p), torch.outer(a, a)) for a in run.x]
    fisher = sum(factors) / len(factors)
    eigenvalues = torch.linalg.eigvalsh(fisher)
    fisher = fisher + damping * eigenvalues.mean() * torch.eye(len(fisher), dtype=torch.float64)
    g_val = torch.autograd.grad(run.target_losses(model, target).mean(), model.weight)[0].flatten()
    g = [
        torch.autograd.grad(run.losses(model, [i])[0], model.weight)[0].flatten()
        for i in run.sample_ids
    ]
    return torch.stack([gi @ torch.linalg.solve(fisher, g_val) for gi in g]).numpy()


def test_influence_in_a_softmax_model_is_exact_where_the_fisher_matrix_is_a_kronecker_product():
    run = softmax_regression("all")
    for target in run.targets:
        found = score(
            run, target, "influence_ekfac", fisher="empirical", damping=0.2, batch=7
        ).values
        assert found == pytest.approx(exact_influence(run, target, 0.2), rel=1e-10)


def test_labels_drawn_from_the_model_converge_to_the_fisher_matrix():
    """The same closed form, its labels now sampled: the error falls with the number of draws as
    1/sqrt does.
    """
    errors = []
    for copies in (20, 2000):
        run = softmax_regression("one")
        exact = exact_influence(run, "val", 0.2)
        run.x, run.y = run.x.repeat(copies, 1), run.y.repeat(copies)
        run.sample_ids = np.arange(len(run.x))
        found = EKFAC(run, EKFACOptions(damping=0.2, batch=1000)).values(["val"])["val"][:5]
        errors.append(np.linalg.norm(found - exact) / np.linalg.norm(exact))
    assert errors[1] < 0.05  # 1 / sqrt(10,000 labels) is 0.01
    assert errors[1] < errors[0]


class Block(nn.Module):
    """Matrix products over tokens, a weight used twice, a bias, a norm, a table, a filter:
    everything that the two forms have to hold.
    """

    def __init__(self):
        super().__init__()
        self.table, self.twice, self.last = (
            nn.Embedding(6, 4),
            nn.Linear(4, 4, bias=False),
            nn.Linear(4, 3),
        )
        self.norm, self.filter = nn.LayerNorm(4), nn.Conv1d(4, 4, 3, padding="same")

    def forward(self, ids):
        x = self.table(ids)
        x = x + torch.tanh(self.twice(x))
        x = x + torch.tanh(self.twice(self.norm(x)))
        return self.last(x + self.filter(x.mT).mT)


def test_every_block_is_its_formula_by_a_loop_over_samples():
    torch.manual_seed(3)
    dice = torch.Generator().manual_seed(2)
    x, x_val = torch.randint(6, (9, 5), generator=dice), torch.randint(6, (4, 5), generator=dice)
    y, y_val = torch.randint(3, (9, 5), generator=dice), torch.randint(3, (4, 5), generator=dice)
    run = Classifier(Block(), x, y, x_val, y_val)
    curvature = EKFAC(run, EKFACOptions(fisher="empirical", damping=0.1, batch=4))
    assert curvature.kronecker == ["last.weight", "twice.weight"]
    assert curvature.diagonal == [
        "filter.bias",
        "filter.weight",
        "last.bias",
        "norm.bias",
        "norm.weight",
        "table.weight",
    ]

    net = run.net
    weights = {name: p.detach() for name, p in net.named_parameters()}
    calls: dict[str, list] = {"twice.weight": [], "last.weight": []}
    hooks = []
    for name, module in (("twice.weight", net.twice), ("last.weight", net.last)):

        def keep(module, inputs, output, name=name):
            output.retain_grad()
            calls[name].append((inputs[0].detach(), output))

        hooks.append(module.register_forward_hook(keep))  # fmt: skip
    gradients, A, B = [], {}, {}
    for i in run.sample_ids:
        for found in calls.values():
            found.clear()
        net.zero_grad()
        run.losses(net, [i])[0].backward()
        gradients.append({name: p.grad.clone() for name, p in net.named_parameters()})
        for name, found in calls.items():
            for a, out in found:
                a, b = a.reshape(-1, a.shape[-1]), out.grad.reshape(-1, out.shape[-1])
                A[name] = A.get(name, 0) + a.T @ a
                B[name] = B.get(name, 0) + b.T @ b
    for hook in hooks:
        hook.remove()

    def target_loss(weights, target):
        return run.target_losses(lambda ids: functional_call(net, weights, (ids,)), target).mean()

    found = curvature.values(["val", "other"])
    for target in run.targets:
        g_val = torch.func.grad(target_loss)(weights, target)
        expected = np.zeros(len(gradients))
        for name, g in g_val.items():
            each = torch.stack([row[name] for row in gradients])
            if name in A:
                Qa, Qb = (torch.linalg.eigh(m[name]).eigenvectors for m in (A, B))
                eigenvalues = ((Qb.T @ each @ Qa) ** 2).mean(0)
                V = Qb @ ((Qb.T @ g @ Qa) / (eigenvalues + 0.1 * eigenvalues.mean())) @ Qa.T
            else:
                eigenvalues = (each**2).mean(0)
                V = g / (eigenvalues + 0.1 * eigenvalues.mean())
            expected += torch.stack([(row * V).sum() for row in each]).numpy()
        assert found[target] == pytest.approx(expected, rel=1e-9)


def test_a_wide_weight_gets_the_diagonal_form_and_params_choose():
    run = softmax_regression("all")
    wide = EKFAC(run, EKFACOptions(fisher="empirical", max_side=3))
    assert (wide.kronecker, wide.diagonal) == ([], ["weight"])
    with pytest.raises(
        BaselineError, match=r"params='nothing' matches no trained parameter; they are weight"
    ):
        EKFAC(run, EKFACOptions(params="nothing"))


def test_curvature_from_a_part_of_the_samples_depends_on_the_seed_only():
    run = softmax_regression("all")
    options = EKFACOptions(fisher="empirical", samples=8, seed=1)
    one, same = (EKFAC(run, options).values(["val"])["val"] for _ in range(2))
    assert (one == same).all()
    assert not np.allclose(
        one, EKFAC(run, EKFACOptions(fisher="empirical", samples=8, seed=2)).values(["val"])["val"]
    )


def test_run_that_cannot_draw_labels_is_told_what_to_do():
    class Plain:
        sample_ids, targets, checkpoints = np.arange(3), ("val",), (Checkpoint(1, 0.1),)

        def model(self, checkpoint=-1):
            return nn.Linear(2, 1, bias=False)

        def losses(self, model, ids):
            return model(torch.ones(len(ids), 2))[:, 0] ** 2

        def target_losses(self, model, target):
            return model(torch.ones(1, 2))[:, 0] ** 2

    with pytest.raises(BaselineError, match=r"Next: fisher='empirical'"):
        EKFAC(Plain(), EKFACOptions())


@pytest.mark.filterwarnings("ignore")  # its own
def test_values_are_those_of_kronfluence(tmp_path):
    """Another implementation (Grosse et al.'s group), where it is installed: it is no dependency,
    because it wants torchvision and accelerate.

    Version 1.0.1 agreed to 5e-15 of the largest value.
    """
    pytest.importorskip("kronfluence")
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task

    dice = torch.Generator().manual_seed(5)
    x, x_val = (torch.randn(n, 6, 5, generator=dice, dtype=torch.float64) for n in (40, 4))
    y, y_val = (torch.randint(4, (n, 6), generator=dice) for n in (40, 4))
    net = nn.Sequential(nn.Linear(5, 7, bias=False), nn.Tanh(), nn.Linear(7, 4, bias=False))
    run = Classifier(net, x, y, x_val, y_val)
    ours = EKFAC(run, EKFACOptions(fisher="empirical", damping=0.1)).values(["val"])["val"]

    class Sums(Task):
        def compute_train_loss(self, batch, model, sample=False):
            return F.cross_entropy(
                model(batch[0]).flatten(0, 1), batch[1].flatten(), reduction="sum"
            )

        def compute_measurement(self, batch, model):
            return self.compute_train_loss(batch, model)

    analyzer = Analyzer(
        "test",
        prepare_model(net, Sums()),
        Sums(),
        cpu=True,
        output_dir=str(tmp_path),
        disable_tqdm=True,
    )
    factors, scores = (
        FactorArguments(strategy="ekfac", use_empirical_fisher=True),
        ScoreArguments(damping_factor=None),
    )
    for arguments in (factors, scores):
        for name in vars(arguments):
            if name.endswith("_dtype"):
                setattr(arguments, name, torch.float64)
    data, query = torch.utils.data.TensorDataset(x, y), torch.utils.data.TensorDataset(x_val, y_val)
    analyzer.fit_all_factors("f", data, per_device_batch_size=8, factor_args=factors)
    analyzer.compute_pairwise_scores(
        "s",
        "f",
        query,
        data,
        per_device_query_batch_size=2,
        per_device_train_batch_size=8,
        score_args=scores,
    )
    theirs = analyzer.load_pairwise_scores("s")["all_modules"].numpy()
    # the target is the mean over two samples of the mean over six tokens; there it is each sample's
    # sum
    assert ours == pytest.approx(theirs[:2].mean(0) / 6, rel=1e-9, abs=1e-12 * np.abs(ours).max())
