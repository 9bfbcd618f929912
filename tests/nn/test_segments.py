"""Several texts in one row: none of them may see another, and a row of one text must stay what it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bitnet.nn.transformer import BitNetTransformer, segment_mask


@pytest.fixture
def row() -> Tensor:
    return torch.randint(0, 32, (2, 12), generator=torch.Generator().manual_seed(3))


SEGMENTS = torch.tensor([[0] * 5 + [1] * 7, [0] * 3 + [1] * 4 + [2] * 5])


def test_the_mask_of_a_worked_example() -> None:
    """Two texts of two tokens: each token sees itself and, inside its text, what came before."""
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert segment_mask(torch.tensor([[0, 0, 1, 1]])).int().tolist() == [[expected]]


def test_one_segment_is_a_row_without_segments(tiny_model: BitNetTransformer, row: Tensor) -> None:
    plain, one = tiny_model(row), tiny_model(row, segments=torch.zeros_like(row))
    torch.testing.assert_close(plain, one, rtol=1e-4, atol=1e-4)


def test_nothing_leaks(tiny_model: BitNetTransformer, row: Tensor) -> None:
    """Other tokens in one segment change not a single bit of the logits of the others; without segments they
    do.
    """
    changed = row.clone()
    changed[0, :5] = (changed[0, :5] + 7) % 32
    before, after = tiny_model(row, segments=SEGMENTS), tiny_model(changed, segments=SEGMENTS)
    assert torch.equal(before[0, 5:], after[0, 5:])
    assert torch.equal(before[1], after[1])
    assert not torch.equal(before[0, :5], after[0, :5])
    assert not torch.equal(tiny_model(row)[0, 5:], tiny_model(changed)[0, 5:])


def test_a_text_reads_the_same_wherever_it_stands(tiny_model: BitNetTransformer, row: Tensor) -> None:
    """Rotary positions are relative: alone in a row a text gets the logits that it gets behind another
    one.
    """
    tiny_model.set_product("float")
    packed = tiny_model(row, segments=SEGMENTS)
    for index, first, last in ((0, 0, 5), (0, 5, 12), (1, 3, 7), (1, 7, 12)):
        alone = tiny_model(row[index : index + 1, first:last])[0]
        close = torch.isclose(packed[index, first:last], alone, rtol=1e-3, atol=1e-3)
        assert (
            close.float().mean() > 0.95
        )  # an activation on the edge of two int8 codes may round the other way


def test_gradients_do_not_leak_either(tiny_model: BitNetTransformer, row: Tensor) -> None:
    """A loss on the second text gives no gradient to the embedding of a token that only the first one has."""
    ids = torch.tensor([[1, 2, 3, 4, 5, 6]])
    logits = tiny_model(ids, segments=torch.tensor([[0, 0, 0, 1, 1, 1]]))
    gathered = torch.autograd.grad(logits[0, 4, 9], tiny_model.token_embeddings.weight)[0]
    assert gathered[[1, 2, 3]].abs().sum() == 0
    assert gathered[[4, 5]].abs().sum() > 0
