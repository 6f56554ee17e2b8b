"""Values in a Hugging Face `Trainer`.

    trainer = ValuedTrainer(
        model, args, train_dataset=train,
        targets={"val": validation}, method="path", store="runs/hf/values",
    )
    trainer.train()
    trainer.values.top(20)

The training set has a column of ids (`id`), integers or strings. Another trainer gets values by
`class Mine(WithValues, SFTTrainer)`. Needs the extra `hf`.
"""

import json
from collections.abc import Callable, Mapping, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset
from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint

from inrun.attributor import Attributor, Options, Recording
from inrun.evaluate import evaluating
from inrun.files import write_json
from inrun.store import ValueStore

CHECKPOINT_FILE = "attribution.json"

if TYPE_CHECKING:
    # a mixin of any Trainer: to a type checker it is one
    class Mixin(Trainer): ...
else:
    Mixin = object


class KeepingNames:
    """A data collator that hands names on beside what the inner one makes of the other columns.

    Args:
        collator: makes a batch of rows; it makes tensors of integer ids itself.
        column: of the ids.
    """

    def __init__(self, collator: Callable[[list], Any], column: str):
        self.collator, self.column = collator, column

    def __call__(self, rows: list) -> Any:
        if not all(isinstance(row, Mapping) for row in rows):
            return self.collator(rows)
        ids = [row[self.column] for row in rows if self.column in row]
        if not any(isinstance(name, str | bytes) for name in ids):
            return self.collator(rows)
        others = [{key: row[key] for key in row if key != self.column} for row in rows]
        batch = self.collator(others)
        batch[self.column] = ids
        return batch


class WithValues(Mixin):
    """What makes a `Trainer` value its samples; stands before the trainer among the bases.

    Args:
        targets: name -> a validation set, whose loss is the trainer's on all of it at once in
            evaluation mode, or a closure as for `Attributor`.
        method, store: of `Attributor`. The values of a run that is resumed from a checkpoint go on
            in the same store.
        attribution: further options of `Attributor` by name.
        sample_id: the column of ids; it is kept out of the model.

    Attributes:
        attributor: of the run that is going on, or the last one. values: the store after `train`.

    Raises:
        ValueError: the batch has no ids, the checkpoint that is to be resumed was saved without
            values, or an option wants a second forward of the batch (per_token, replay,
            route="forward").
    """

    def __init__(
        self,
        *args,
        targets: Mapping[str, Dataset | Callable[[], Tensor]],
        method: Any = "path",
        store: str | Path | Recording | None = None,
        sample_id: str = "id",
        attribution: Mapping[str, Any] | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.data_collator = KeepingNames(self.data_collator, sample_id)
        self.sample_id, self._given_targets = sample_id, dict(targets)
        self._options = Options(**{"method": method, "store": store, **(attribution or {})})
        if self._options.runs_again:
            route = self._options.route
            asked = f"route={route.kind!r}" if route.needs_forward else "per_token=True"
            raise ValueError(
                f"{asked}: the Trainer runs a batch once; use Attributor around a loop of your own"
            )
        self.attributor: Attributor | None = None
        self.values: ValueStore | None = None
        self._came_from: Path | None = None

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        found = (
            get_last_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is True
            else resume_from_checkpoint
        )
        self._came_from = Path(found) if found else None
        self.attributor = None
        try:
            outcome = super().train(resume_from_checkpoint, *args, **kwargs)
        except BaseException as error:
            if self.attributor:
                self.attributor.__exit__(type(error), error, error.__traceback__)
            raise
        self.values = None
        if self.attributor:
            self.values = self.attributor.close()
            self.log(self.attributor.ledger.figures())
        return outcome

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args, **kwargs) -> Tensor:
        ids = inputs.pop(self.sample_id, None)
        if ids is None:
            raise ValueError(
                f"the batch has no {self.sample_id!r}: give every row of the training set an id, "
                f"an integer (dataset.add_column({self.sample_id!r}, range(len(dataset)))) or a "
                "string, and use a data collator that keeps it"
            )
        if self.attributor is None:
            self.attributor = self._make_attributor(model)
        with self.attributor.batch(ids):
            return super().training_step(model, inputs, *args, **kwargs)

    def _make_attributor(self, model: nn.Module) -> Attributor:
        targets = {
            name: given if callable(given) else self._closure(model, given)
            for name, given in self._given_targets.items()
        }
        resume = None
        if self._came_from:
            kept = self._came_from / CHECKPOINT_FILE
            if not kept.is_file():
                raise ValueError(
                    f"{self._came_from} was saved without values (it has no {CHECKPOINT_FILE}); "
                    "resume from a checkpoint of a run with values, or start anew"
                )
            resume = json.loads(kept.read_text(encoding="utf-8"))
        # accelerate wraps it
        optimizer = cast(Optimizer, getattr(self.optimizer, "optimizer", self.optimizer))
        attributor = Attributor(model, optimizer, targets, **vars(self._options))
        if resume is not None:
            attributor.load_state_dict(resume)
        return attributor

    def _closure(self, model: nn.Module, given: Dataset) -> Callable[[], Tensor]:
        rows = range(len(cast(Sized, given)))
        batch = self.data_collator([given[row] for row in rows])
        batch.pop(self.sample_id, None)
        batch = self._prepare_inputs(batch)

        def loss() -> Tensor:
            with evaluating(model), self.compute_loss_context_manager():
                return cast(Tensor, self.compute_loss(model, dict(batch)))

        return loss

    def _save_checkpoint(self, *args, **kwargs) -> None:
        if self.attributor:
            state = self.attributor.state_dict()
            # before the rest, so that a checkpoint that is whole has it
            if self.attributor.processes.leads:
                root = Path(cast(str, self.args.output_dir))
                folder = root / f"checkpoint-{self.state.global_step}"
                folder.mkdir(parents=True, exist_ok=True)
                write_json(folder / CHECKPOINT_FILE, state, indent=None)
        super()._save_checkpoint(*args, **kwargs)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns = cast(list[str], self._signature_columns)
        if self.sample_id not in columns:
            columns.append(self.sample_id)


class ValuedTrainer(WithValues, Trainer):
    """A `Trainer` that values its samples; see `WithValues`."""
