"""The places where mutants patch the engine: one table, by name."""

import torch

from inrun.attributor import stack
from inrun.attributor.hooks import StepHooks
from inrun.attributor.ledger import Ledger
from inrun.attributor.micro_batches import MicroBatches
from inrun.attributor.parameters import RandomState, TrackedParameters
from inrun.attributor.step import OpenStep
from inrun.conformance.problem import Problem
from inrun.ghost import Tape, tape
from inrun.ghost.origin import Derived
from inrun.methods import path as path_module
from inrun.methods import rough
from inrun.methods import step as step_module
from inrun.methods.step import Step
from inrun.methods.target import Target
from inrun.rules import conv, linear
from inrun.rules.factors import Aligned, Outer, Rows
from inrun.rules.head import HeadFactor
from inrun.updates.adam import AdamUpdate
from inrun.updates.base import Update
from inrun.updates.lion import LionUpdate
from inrun.updates.sgd import PlainSGD, SGDUpdate

#: name -> (owner, attribute)
POINTS = {
    "AdamUpdate.__call__": (AdamUpdate, "__call__"),
    "AdamUpdate.__init__": (AdamUpdate, "__init__"),
    "AdamUpdate.root": (AdamUpdate, "root"),
    "AdamUpdate.frozen_slope": (AdamUpdate, "frozen_slope"),
    "AdamUpdate.noise_dominated": (AdamUpdate, "noise_dominated"),
    "AdamUpdate.rough_everywhere": (AdamUpdate, "rough_everywhere"),
    "AdamUpdate.secant": (AdamUpdate, "secant"),
    "AdamUpdate.stateless": (AdamUpdate, "stateless"),
    "AdamUpdate.warming_up": (AdamUpdate, "warming_up"),
    "Aligned.dots": (Aligned, "dots"),
    "Derived.jvp": (Derived, "jvp"),
    "DirectionStack.stacked": (stack.DirectionStack, "stacked"),
    "HeadFactor.dots": (HeadFactor, "dots"),
    "LearningRates.ratio": (stack.LearningRates, "ratio"),
    "Ledger.close": (Ledger, "close"),
    "Ledger.open": (Ledger, "open"),
    "LionUpdate.__init__": (LionUpdate, "__init__"),
    "MicroBatches.again": (MicroBatches, "again"),
    "MicroBatches.dots": (MicroBatches, "dots"),
    "StepHooks.remove": (StepHooks, "remove"),
    "OpenStep.finish": (OpenStep, "finish"),
    "OpenStep.gradients_and_factor": (OpenStep, "gradients_and_factor"),
    "OpenStep.values": (OpenStep, "values"),
    "OpenStep.view": (OpenStep, "view"),
    "Outer.dots": (Outer, "dots"),
    "PlainSGD.__call__": (PlainSGD, "__call__"),
    "Problem.target_loss": (Problem, "target_loss"),
    "RandomState.restore": (RandomState, "restore"),
    "Rows.dots": (Rows, "dots"),
    "SGDUpdate.__call__": (SGDUpdate, "__call__"),
    "SGDUpdate.__init__": (SGDUpdate, "__init__"),
    "RoughElements.common": (rough.RoughElements, "common"),
    "RoughElements.complete": (rough.RoughElements, "complete"),
    "RoughElements.smoothed": (rough.RoughElements, "smoothed"),
    "Step.between": (Step, "between"),
    "Step.middle": (Step, "middle"),
    "Step.moved": (Step, "moved"),
    "Step.pull_back": (Step, "pull_back"),
    "Step.rules": (Step, "rules"),
    "Step.without_samples": (Step, "without_samples"),
    "Tape.squares": (Tape, "squares"),
    "Target.__init__": (Target, "__init__"),
    "Target.forget": (Target, "forget"),
    "Target.gradient": (Target, "gradient"),
    "Target.gradient_and_hvp": (Target, "gradient_and_hvp"),
    "TrackedParameters.find_owners": (TrackedParameters, "find_owners"),
    "TrackedParameters.track": (TrackedParameters, "track"),
    "Update.secant": (Update, "secant"),
    "conv.filter_gradients": (conv, "filter_gradients"),
    "linear.token_rows": (linear, "token_rows"),
    "path.segments": (path_module, "segments"),
    "stack.directions": (stack, "directions"),
    "step.blockwise": (step_module, "blockwise"),
    "rough.coalition_slope": (rough, "coalition_slope"),
    "tape.add_dots": (tape, "add_dots"),
    "torch.random.fork_rng": (torch.random, "fork_rng"),
}
