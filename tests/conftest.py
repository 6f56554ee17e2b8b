"""Shared by all tests: the interpreter switch of Triton must be set before triton is imported
anywhere.
"""

import os
import signal
import sys

# torch's inductor imports it late; inside a test, where warnings are errors, its stand-in for
# distutils would give up
import setuptools  # noqa: F401
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

import pytest


@pytest.fixture(scope="session", autouse=True)
def signals_that_arrive():
    """Under nohup, or behind `&` in a script, the suite is started with signals ignored, and what
    it starts would inherit that.
    """
    defaults = {"SIGINT": signal.default_int_handler, "SIGHUP": signal.SIG_DFL}
    for name, handler in defaults.items():
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(autouse=True)
def fixed_seed():
    """Every test starts from the same random state, compiles anew, and leaves the default dtype as
    it was.
    """
    torch.manual_seed(0)
    if (
        "torch._dynamo" in sys.modules
    ):  # it counts the recompilations of a function over all models that share it
        torch._dynamo.reset()
    yield
    assert torch.get_default_dtype() == torch.float32, "a test left another default dtype behind"


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="no CUDA device")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)
