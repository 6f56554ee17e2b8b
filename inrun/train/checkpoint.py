"""Checkpoints without pickles: tensors in safetensors, the rest in JSON.

    checkpoints/step-000000500/
        model.safetensors      parameters (a tied weight once) and persistent buffers, by name
        optimizer.safetensors  "<state>/<parameter>", random states "rng/cpu", "rng/cuda0", ...
        state.json             format, step, what the Attributor needs to go on

A checkpoint is written beside its place, synced and renamed, so it appears whole or not at all: a
kill at any moment leaves the one before.
"""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from inrun.files import new_folder, write_json

FORMAT = 1
_NAME = re.compile(r"step-(\d{9})")


class CheckpointError(RuntimeError):
    """A checkpoint is damaged, or belongs to another model or optimizer."""


def save(
    root: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    extra: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write the checkpoint of `step` steps done. Returns its folder.

    Then all but the last `keep` are removed. extra: JSON values that `load` gives back. Leftovers
    of an interrupted save are removed.
    """
    root.mkdir(parents=True, exist_ok=True)
    for leftover in root.glob("*.partial"):
        shutil.rmtree(leftover)
    folder = folder_of(root, step)
    with new_folder(folder) as partial:  # the same step again, after a resume, has equal content
        _save_tensors(model_tensors(model), partial / "model.safetensors")
        _save_tensors(
            {**optimizer_tensors(model, optimizer), **_random_states()},
            partial / "optimizer.safetensors",
        )
        write_json(partial / "state.json", {"format": FORMAT, "step": step, **extra})
    for old in checkpoints(root)[:-keep]:
        shutil.rmtree(old)
    return folder


def folder_of(root: Path, step: int) -> Path:
    """Where the checkpoint of `step` steps done is, among those under `root`."""
    return root / f"step-{step:09d}"


def step_of(folder: Path) -> int:
    """How many steps were done at the checkpoint."""
    return int(folder.name.removeprefix("step-"))


def checkpoints(root: Path) -> list[Path]:
    """Folders of the whole checkpoints, oldest first."""
    return sorted(path for path in root.glob("step-*") if _NAME.fullmatch(path.name))


def load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put weights, optimizer state and the random state back as they were; returns state.json.

    Raises CheckpointError; nothing has been changed then except, at most, the model.
    """
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        weights = load_file(folder / "model.safetensors")
        others = load_file(folder / "optimizer.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"checkpoint {folder} is damaged ({error}). Next: delete this folder; the run "
            "then goes on from the one before"
        ) from error
    if state["format"] != FORMAT:
        raise CheckpointError(
            f"checkpoint {folder} has format {state['format']}, this version reads {FORMAT}"
        )
    load_model(model, weights, folder)
    _load_optimizer(model, optimizer, others, folder)
    _set_random_states(others)
    return state


def load_model(model: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Copy `weights` (as in model.safetensors of `source`) into the model.

    Raises CheckpointError unless all names and shapes agree.
    """
    own = model_tensors(model)
    wrong = sorted(set(own) ^ set(weights)) or [n for n in own if own[n].shape != weights[n].shape]
    if wrong:
        raise CheckpointError(
            f"{source} belongs to another model: it differs in {', '.join(wrong[:5])}"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights[name])


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, a tied one once, and persistent buffers, by name."""
    persistent = model.state_dict().keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in persistent}
    return {**dict(model.named_parameters()), **buffers}


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state, "<state>/<parameter>" -> tensor.

    Learning rate and the like follow from config and step.
    """
    found = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if not isinstance(value, Tensor):
                raise CheckpointError(
                    f"{type(optimizer).__name__} keeps {key} of {name} as "
                    f"{type(value).__name__}, not as a tensor"
                )
            found[f"{key}/{name}"] = value
    return found


def _load_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, saved: Mapping[str, Tensor], source: Path
) -> None:
    index = {
        id(p): k
        for k, p in enumerate(p for group in optimizer.param_groups for p in group["params"])
    }
    parameters = dict(model.named_parameters())
    state: dict[int, dict[str, Tensor]] = {}
    for entry, tensor in saved.items():
        key, _, name = entry.partition("/")
        if key == "rng":
            continue
        if name not in parameters:
            raise CheckpointError(
                f"{source} has optimizer state of {name!r}, which this model lacks"
            )
        state.setdefault(index[id(parameters[name])], {})[key] = tensor
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def _save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)


def _random_states() -> dict[str, Tensor]:
    states = {"rng/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states.update({f"rng/cuda{k}": s for k, s in enumerate(torch.cuda.get_rng_state_all())})
    return states


def _set_random_states(saved: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(saved["rng/cpu"])
    for device in range(torch.cuda.device_count()):
        if f"rng/cuda{device}" in saved:
            torch.cuda.set_rng_state(saved[f"rng/cuda{device}"], device)
