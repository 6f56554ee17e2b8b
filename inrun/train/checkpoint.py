"""Checkpoints without pickles: tensors in safetensors, the rest in JSON.

    checkpoints/step-000000500/
        model.safetensors      parameters (a tied weight once) and persistent buffers, by name
        optimizer.safetensors  "<state>/<parameter>", random states "rng/cpu", "rng/cuda0", ...
        state.json             format, step, digest of the run's config, size and sha256 of both
                               files, what the Attributor needs to go on, digest of all this

A checkpoint is written beside its place, synced and renamed, so it appears whole or not at all: a
kill at any moment leaves the one before. What is loaded is compared with what was written. Lost
bits (a file that is cut, missing or has another sha256) are `DamagedError`, for which the
checkpoint before will do; files that are whole and belong elsewhere are `CheckpointError`.
"""

import hashlib
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

from inrun.files import file_sha256, new_folder, sync, write_json

FORMAT = 2
WEIGHTS, OTHERS, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
DAMAGED = ".damaged"
_NAME = re.compile(r"step-(\d{9})")
_ELSEWHERE = (
    "It was altered, or is of another run. Next: put the file back that was written there, or "
    "delete the folder; the run then goes on from the checkpoint before"
)


class CheckpointError(RuntimeError):
    """A checkpoint is damaged, or belongs to another run, model or optimizer."""


class DamagedError(CheckpointError):
    """A checkpoint has lost bits since it was written."""


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
    if not root.exists():
        root.mkdir(parents=True)
        sync(root.parent)
    for leftover in [*root.glob("*.partial"), *root.glob(f"*{DAMAGED}")]:
        shutil.rmtree(leftover)
    folder = folder_of(root, step)
    with new_folder(folder) as partial:  # the same step again, after a resume, has equal content
        _save_tensors(model_tensors(model), partial / WEIGHTS)
        _save_tensors({**optimizer_tensors(model, optimizer), **_random_states()}, partial / OTHERS)
        files = {name: _about(partial / name) for name in (WEIGHTS, OTHERS)}
        state = {"format": FORMAT, "step": step, "files": files, **extra}
        write_json(partial / STATE, {**state, "digest": _digest(state)})
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


def check(folder: Path, config: str | None = None) -> dict[str, Any]:
    """Compare a checkpoint with what was written there. Returns state.json.

    Both tensor files are read whole. config: digest of the run's config, None for any.

    Raises:
        DamagedError: bits are lost.
        CheckpointError: it belongs to another step or run, or is of another format.
    """
    state = _state(folder)
    if state["step"] != step_of(folder):
        raise CheckpointError(f"{folder} holds the state of step {state['step']}. {_ELSEWHERE}")
    if config is not None and state.get("config") != config:
        raise CheckpointError(
            f"{folder} was made with another config than run.json has now. Next: put run.json back "
            "as it was (only how long, how often and where may change), or start a new run"
        )
    for name, about in state["files"].items():
        _compare(folder / name, about)
    return state


def load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put weights, optimizer state and the random state back as they were; returns state.json.

    What is not looked at here, `check` looks at. Raises CheckpointError; nothing has been changed
    then except, at most, the model.
    """
    state = _state(folder)
    try:
        weights, others = load_file(folder / WEIGHTS), load_file(folder / OTHERS)
    except (OSError, SafetensorError) as error:
        raise _damaged(folder, error) from error
    load_model(model, weights, folder)
    _load_optimizer(model, optimizer, others, folder)
    _set_random_states(others)
    return state


def set_aside(folder: Path) -> Path:
    """Rename a damaged checkpoint, so that it counts no more. The next save removes it."""
    place = folder.with_name(folder.name + DAMAGED)
    if place.exists():
        shutil.rmtree(place)
    folder.rename(place)
    sync(folder.parent)
    return place


def _state(folder: Path) -> dict[str, Any]:
    """state.json, which is as it was written."""
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(folder, error) from error
    format = state.get("format") if isinstance(state, dict) else None
    if isinstance(format, int) and format < FORMAT:
        raise CheckpointError(
            f"checkpoint {folder} has format {format}, this version reads {FORMAT}. Next: go on "
            "with the version that wrote it, or start a new run"
        )
    rest = {k: v for k, v in state.items() if k != "digest"} if isinstance(state, dict) else {}
    if format != FORMAT or state.get("digest") != _digest(rest):
        raise CheckpointError(f"{folder / STATE} is not what was written there. {_ELSEWHERE}")
    return state


def _digest(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _about(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": file_sha256(file)}


def _compare(file: Path, about: Mapping[str, Any]) -> None:
    """Lost bits leave a size or less of it; another size that can be read is another file."""
    try:
        found = _about(file)
        if found == about:
            return
        if found["bytes"] != about["bytes"]:
            load_file(file)
            raise CheckpointError(f"{file} is not what was written there. {_ELSEWHERE}")
    except (OSError, SafetensorError) as error:
        raise _damaged(file.parent, error) from error
    raise _damaged(file.parent, f"{file.name} has another sha256")


def _damaged(folder: Path, why: object) -> DamagedError:
    return DamagedError(
        f"checkpoint {folder} is damaged ({why}). Next: delete this folder; the run then goes on "
        "from the one before"
    )


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
