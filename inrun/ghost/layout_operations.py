"""Layouts through operations whose result has rows of another kind than their largest argument."""

from torch import Tensor

from inrun.ghost.layout_moves import Moved, moves
from inrun.rules.layout import Layout, at


@moves("embedding_bag")
def bags(moved: Moved, outputs: list[Tensor]) -> list[Layout] | None:
    """Of bags of rows: a bag's sample is that of its offset, or of its row of ids."""
    offsets = moved.argument(2, "offsets")
    whose = moved.args[0] if offsets is None else offsets
    if not isinstance(whose, Tensor) or len(outputs) > 1:
        return None
    layouts = [layout for x, layout in zip(moved.leaves, moved.layouts) if x is whose]
    return layouts if outputs[0].shape[0] == whose.shape[0] else None


@moves("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent(moved: Moved, outputs: list[Tensor]) -> list[Layout] | None:
    """Of (states of all steps, last states of all layers): the latter have samples on axis 1."""
    own = moved.layouts[0]
    if own.owners is None or outputs[0].dim() != 3 or own.axis != int(not moved.args[-1]):
        return None
    return [own, *[at(1, own.owners)] * (len(outputs) - 1)]
