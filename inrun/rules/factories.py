"""Operations that make a tensor out of no tensor, without data of the batch.

torch.tensor, from_numpy and the random ones are not among them: theirs may hold samples.
"""

import torch

from inrun.rules.registry import without_samples

without_samples(
    torch.arange,
    torch.zeros,
    torch.ones,
    torch.full,
    torch.empty,
    torch.eye,
    torch.linspace,
    torch.tril_indices,
    torch.triu_indices,
    torch.scalar_tensor,
)
