"""What a position sees of others, and dropout."""

from itertools import pairwise

import pytest
import torch

from inrun import models
from inrun.models.language_model import attend, document_mask
from inrun.models.pythia import rotary_tables, rotate
from tests.support.model_cases import (
    FAMILIES,
    FLOAT64,
    SHAPE,
    hugging_face,
    moved,
    relative_rms,
    small,
    tokens_and_targets,
)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_documents_equal_the_documents_alone(family):
    """Oracle: Hugging Face on each document, at the positions at which it lies in the sample."""
    theirs = hugging_face(family)
    ours = models.from_hf(theirs.state_dict(), models.config(family, "tiny", **SHAPE))
    tokens, _ = tokens_and_targets(n=2)
    starts = [[0, 7, 16, 24], [0, 1, 23, 24]]
    document_ids = torch.tensor(
        [[sum(p >= s for s in row[1:]) for p in range(24)] for row in starts]
    )
    with torch.no_grad():
        packed = ours(tokens, document_ids)
        for row, bounds in enumerate(starts):
            for start, stop in pairwise(bounds):
                positions = torch.arange(start, stop)[None]
                alone = theirs(tokens[row : row + 1, start:stop], position_ids=positions).logits
                assert relative_rms(packed[row : row + 1, start:stop], alone) < FLOAT64
        assert relative_rms(ours(tokens, document_ids * 0), ours(tokens)) < FLOAT64


def test_pythia_documents_do_not_depend_on_where_they_lie():
    """Rotary attention sees distances; the angles are float32 numbers of up to t = 24, off by t
    2^-24 = 1.4e-6.
    """
    model = moved(small("pythia").double())
    tokens, _ = tokens_and_targets(n=1)
    document_ids = (torch.arange(24) >= 10).long()[None]
    with torch.no_grad():
        assert relative_rms(model(tokens, document_ids)[:, 10:], model(tokens[:, 10:])) < 2e-6


@pytest.mark.parametrize("packed", [False, True])
def test_attention_is_a_softmax_over_the_allowed_past(packed):
    n, h, t, c = 2, 3, 5, 4
    q, k, v = torch.randn(3, n, h, t, c, dtype=torch.float64)
    ids = (
        torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 0, 2]])
        if packed
        else torch.zeros(n, t, dtype=torch.long)
    )
    mixed = attend(q, k, v, document_mask(ids if packed else None)).view(n, t, h, c)
    for sample in range(n):
        for head in range(h):
            for token in range(t):
                past = [s for s in range(token + 1) if ids[sample, s] == ids[sample, token]]
                weights = torch.stack(
                    [q[sample, head, token] @ k[sample, head, s] / c**0.5 for s in past]
                ).softmax(0)
                expected = sum(w * v[sample, head, s] for w, s in zip(weights, past, strict=True))
                assert relative_rms(mixed[sample, token, head], expected) < FLOAT64


@pytest.mark.parametrize("family", FAMILIES)
def test_a_later_token_does_not_change_earlier_logits(family):
    model = moved(small(family))
    tokens, _ = tokens_and_targets()
    changed = tokens.clone()
    changed[:, 11] = (changed[:, 11] + 1) % 101
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :11], after[:, :11])
    assert (before[:, 11:] != after[:, 11:]).any(-1).all()


def test_dropout_acts_in_training_only():
    model = moved(small("gpt2", dropout=0.5))
    tokens, _ = tokens_and_targets()
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    twin = small("gpt2", dropout=0.0)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(model(tokens), twin(tokens))


@pytest.mark.parametrize("place", ["embeddings", "attention weights", "residual branches"])
def test_dropout_acts_in_each_of_its_places(place):
    model = moved(small("gpt2", n_layer=1, dropout=0.5)).eval()
    parts = {
        "embeddings": model.drop,
        "attention weights": model.h[0].attn,
        "residual branches": model.h[0].drop,
    }
    tokens, _ = tokens_and_targets()
    assert torch.equal(model(tokens), model(tokens))
    parts[place].train()
    assert not torch.equal(model(tokens), model(tokens))


def test_rotation_is_a_product_of_complex_numbers():
    """Number j and number j + width / 2 of a head are one complex number; token t turns it by t
    base^(-2 j / width).
    """
    config = models.config("pythia", "tiny", rotary_pct=0.5, rotary_base=100.0, **SHAPE)
    width, c = 8, 16
    x = torch.randn(2, 4, 24, c, dtype=torch.float64)
    cos, sin = (table[:24] for table in rotary_tables(config))
    angles = torch.arange(24.0, dtype=torch.float64)[:, None] * 100.0 ** (
        -torch.arange(4, dtype=torch.float64) / 4
    )
    turned = torch.complex(x[..., :4], x[..., 4:8]) * torch.polar(torch.ones_like(angles), angles)
    expected = torch.cat((turned.real, turned.imag, x[..., width:]), dim=-1)
    # The tables are float32, and angles of up to 23 are off by 23 * 2^-24.
    assert relative_rms(rotate(x, cos, sin), expected) < 1.4e-6
    assert rotate(x.bfloat16(), cos, sin).dtype == torch.bfloat16
