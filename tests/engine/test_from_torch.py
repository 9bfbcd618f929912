"""A model is packed as it is: its own codes and scales, which later changes do not reach."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import needs_kernels, random_ids, small_model

from bitnet.engine.from_torch import packed
from bitnet.errors import ConfigError

pytestmark = needs_kernels


def test_weights_that_change_later_do_not_reach_the_decoder() -> None:
    model = small_model()
    decoder = packed(model)
    before = decoder.new_rows(1).read({0: [1, 2, 3]})
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    assert np.array_equal(before, decoder.new_rows(1).read({0: [1, 2, 3]}))


def test_it_takes_whole_rows_up_to_the_models_length_on_the_cpu() -> None:
    decoder = packed(small_model(max_seq_length=20))
    assert decoder.device == torch.device("cpu")
    ids = random_ids(small_model(), 21)
    assert decoder(torch.tensor([ids[:20]])).shape == (1, 20, 50)
    with pytest.raises(ConfigError, match="21 tokens do not fit the model's max_seq_length of 20"):
        decoder(torch.tensor([ids]))
