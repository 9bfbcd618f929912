"""The cache refuses what it cannot hold and can drop finished rows."""

from __future__ import annotations

import pytest
import torch

from bitnet.nn.kv_cache import KVCache


def test_it_returns_everything_stored_so_far() -> None:
    cache = KVCache(1, 2, 3, 5, 4, like=torch.zeros(1))
    first, second = torch.randn(2, 3, 3, 4), torch.randn(2, 3, 2, 4)
    assert torch.equal(cache.extend(0, first, first)[0], first)
    cache.advance(3)
    keys, values = cache.extend(0, second, -second)
    assert torch.equal(keys, torch.cat((first, second), dim=2))
    assert torch.equal(values, torch.cat((first, -second), dim=2))


def test_it_refuses_more_than_its_capacity() -> None:
    cache = KVCache(1, 1, 1, 2, 4, like=torch.zeros(1))
    three = torch.zeros(1, 1, 3, 4)
    with pytest.raises(AssertionError, match="cache of 2 tokens cannot hold 3"):
        cache.extend(0, three, three)


def test_it_keeps_only_the_rows_that_are_selected() -> None:
    cache = KVCache(2, 3, 1, 2, 4, like=torch.zeros(1))
    keys = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 2, 4)
    cache.extend(0, keys, keys)
    cache.select(torch.tensor([True, False, True]))
    assert cache.keys[0, :, 0, 0, 0].tolist() == [0.0, 2.0]
    assert cache.values.shape == (2, 2, 1, 2, 4)
