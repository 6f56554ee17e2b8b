"""Mistakes in the step as a whole."""

import contextlib

import torch

from tests.support.mutants.base import exchange, mutant, wrap


@mutant("only the last micro-batch is valued", "2 x 3", "3 x 2", seen="GhostSuite")
def _(patch):
    def collect(original, self, V, of):
        out = original(self, V, of)
        first = sum(len(m.ids) for m in self.done[:-1])
        return {
            name: torch.cat([torch.zeros_like(d[:, :first]), d[:, first:]], 1)
            for name, d in out.items()
        }

    wrap(patch, "MicroBatches.dots", collect)


@mutant("micro-batches come out in the wrong order", "2 x 3", "3 x 2")
def _(patch):
    def collect(original, self, V, of):
        self.done.reverse()
        out = original(self, V, of)
        self.done.reverse()
        return out

    wrap(patch, "MicroBatches.dots", collect)


@mutant("values are divided by the number of samples", "linear, few tokens", seen="GhostSuite")
def _(patch):
    wrap(
        patch,
        "MicroBatches.dots",
        lambda original, self, V, of: {
            name: d / d.shape[1] for name, d in original(self, V, of).items()
        },
    )


@mutant(
    "values are divided by the sample's gradient norm",
    "path",
    "AdamW, path",
    seen="GhostSuite under Adam",
)
def _(patch):
    def collect(original, self, V, of):
        out = original(self, V, of)
        norms = torch.stack(
            [
                torch.cat([m.record.dense(name, i).flatten() for name in out]).norm()
                for m in self.done
                for i in range(len(m.ids))
            ]
        )
        return {name: d / norms for name, d in out.items()}

    wrap(patch, "MicroBatches.dots", collect)


@mutant("the clip factor is not applied", "clipping", "clipping, AdamW")
def _(patch):
    wrap(patch, "OpenStep.gradients_and_factor", lambda original, self: (original(self)[0], 1.0))


@mutant("the clip factor is applied to G twice", "clipping, second order")
def _(patch):
    def both(original, self):
        gradients, c = original(self)
        return {name: c * g for name, g in gradients.items()}, c

    wrap(patch, "OpenStep.gradients_and_factor", both)


@mutant("G is the gradient before clipping", "clipping, second order", "clipping, AdamW")
def _(patch):
    def both(original, self):
        gradients, c = original(self)
        return {name: g / c for name, g in gradients.items()}, c

    wrap(patch, "OpenStep.gradients_and_factor", both)


@mutant("the learning rate is that of the first step", "schedule", "clipping, AdamW")
def _(patch):
    def owners(original, self):
        if not hasattr(self, "first"):
            found = original(self)
            self.first = {
                key: (optimizer, dict(group)) for key, (optimizer, group) in found.items()
            }
        return self.first

    wrap(patch, "TrackedParameters.find_owners", owners)


@mutant(
    "a learning rate set after the backward is missed",
    "schedule, set late",
    "schedule, set late, forward route",
)
def _(patch):
    exchange(patch, "LearningRates.ratio", lambda self, name: 1.0)


@mutant("the learning rate is that of the next step", "schedule")
def _(patch):
    # values are taken after the scheduler has stepped
    schedule = (1.0, 0.3, 0.7, 0.7)

    def values(original, self, *args):
        ratio = schedule[self.number + 1] / schedule[self.number]
        total, dots, tokens = original(self, *args)
        return ratio * total, {name: ratio * d for name, d in dots.items()}, tokens

    wrap(patch, "OpenStep.values", values)


@mutant("all parameters get the first group's options", "parameter groups")
def _(patch):
    def owners(original, self):
        return {
            key: (optimizer, optimizer.param_groups[0])
            for key, (optimizer, _) in original(self).items()
        }

    wrap(patch, "TrackedParameters.find_owners", owners)


@mutant("the forward is repeated with other dropout masks", "dropout, forward route")
def _(patch):
    exchange(patch, "RandomState.restore", lambda self: None)


@mutant(
    "a second forward of the batch stays in the buffers",
    "writes to buffers, tokens",
    "writes to buffers, forward route",
)
def _(patch):
    exchange(patch, "MicroBatches.again", lambda self, micro: contextlib.nullcontext())


@mutant("hooks stay on the optimizer", "linear, few tokens")
def _(patch):
    exchange(patch, "StepHooks.remove", lambda self: None)


@mutant("the random state moves on", "linear, few tokens")
def _(patch):
    wrap(patch, "OpenStep.finish", lambda original, self: (original(self), torch.rand(()))[0])


@mutant("gradients are changed in the last bit", "linear, few tokens", "clipping")
def _(patch):
    def finish(original, self):
        found = original(self)
        for p in self.setting.parameters.by_name.values():
            p.grad.mul_(1 + 4e-16)
        return found

    wrap(patch, "OpenStep.finish", finish)


@mutant("drift is left out", "AdamW, path", "momentum, path")
def _(patch):
    def opened(original, self, result, *args):
        original(self, result, *args)
        result.drift.update(dict.fromkeys(result.drift, 0.0))

    wrap(patch, "Ledger.open", opened)


@mutant("drift has the wrong sign in the ledger", "AdamW, path", "momentum, path")
def _(patch):
    def close(original, self, writer):
        original(self, writer)
        for row in self.last.values():
            row["residual"] = row["drop"] + row["drift"] - row["values"]

    wrap(patch, "Ledger.close", close)


@mutant(
    "the paper's formula uses the optimizer's slope",
    "AdamW, paper's formula",
    "AdamW, paper's second order",
)
def _(patch):
    wrap(patch, "Step.rules", lambda original, self, method: self.updates)


@mutant("the plain rule decays weights", "AdamW, paper's second order")
def _(patch):
    wrap(
        patch,
        "PlainSGD.__call__",
        lambda original, self, g: original(self, g) + self.lr * 0.1 * self.weight,
    )
