"""Held-out loss by worked example: per scored token, per byte of its text, over all batches at once."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bitnet.data.stream import Batch
from bitnet.evaluate.loss import held_out_loss
from bitnet.nn.transformer import BitNetTransformer
from bitnet.text.characters import CharacterTokenizer

TOKENIZER = CharacterTokenizer("aä=\n", 8)  # a 4, ä 5 (two bytes), = 6, newline 7


def batch(targets: list[list[int]], scored: list[list[int]]) -> Batch:
    expected = torch.tensor(targets)
    return Batch(torch.full_like(expected, 4), expected, torch.tensor(scored).bool())


class Fixed(torch.nn.Module):
    """Token 4 has probability 1/2, each of the other seven 1/14."""

    def __init__(self) -> None:
        super().__init__()
        self.device = torch.device("cpu")

    def forward(self, ids: Tensor) -> Tensor:
        return torch.tensor([1 / 14] * 4 + [1 / 2] + [1 / 14] * 3).log().expand(*ids.shape, 8)


def test_nats_and_bits_are_those_of_the_scored_targets() -> None:
    """a (1 byte) at ln 2 and ä (2 bytes) at ln 14; the second row's = is not scored."""
    found = held_out_loss(Fixed(), [batch([[4, 5], [6, 4]], [[1, 1], [0, 0]])], TOKENIZER)  # type: ignore[arg-type]
    nats = math.log(2) + math.log(14)
    assert found["tokens"] == 2
    assert found["nats_per_token"] == pytest.approx(nats / 2, rel=1e-6)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / 3, rel=1e-6)


def test_it_is_the_mean_over_tokens_and_not_over_batches() -> None:
    batches = [batch([[4, 4, 4]], [[1, 1, 1]]), batch([[5, 4, 4]], [[1, 0, 0]])]
    found = held_out_loss(Fixed(), batches, TOKENIZER)  # type: ignore[arg-type]
    assert found["nats_per_token"] == pytest.approx((3 * math.log(2) + math.log(14)) / 4, rel=1e-6)


def test_special_tokens_are_scored_and_have_no_bytes() -> None:
    found = held_out_loss(Fixed(), [batch([[0, 2]], [[1, 1]])], TOKENIZER)  # type: ignore[arg-type]
    assert found["nats_per_token"] == pytest.approx(math.log(14), rel=1e-6)
    assert math.isnan(found["bits_per_byte"])


def test_nothing_scored_is_no_number() -> None:
    found = held_out_loss(Fixed(), [], TOKENIZER)  # type: ignore[arg-type]
    assert found["tokens"] == 0
    assert math.isnan(found["nats_per_token"])


def test_texts_of_one_row_are_told_to_the_model(tiny_model: BitNetTransformer) -> None:
    """A packed row is as good as its texts alone."""
    ids = torch.randint(0, 32, (1, 8), generator=torch.Generator().manual_seed(0))
    packed = Batch(ids[:, :-1], ids[:, 1:], torch.tensor([[1, 1, 0, 1, 1, 1, 1]]).bool())
    with_segments = packed._replace(segments=torch.tensor([[0, 0, 0, 1, 1, 1, 1]]))
    alone = [Batch(ids[:, a:b], ids[:, a + 1 : b + 1], packed.loss_mask[:, a:b]) for a, b in ((0, 3), (3, 7))]
    tokenizer = CharacterTokenizer("0123456789+-*/()= \n", 32)
    tiny_model.set_product("float")
    expected = held_out_loss(tiny_model, alone, tokenizer)
    assert held_out_loss(tiny_model, [with_segments], tokenizer) == pytest.approx(expected, rel=1e-3)
