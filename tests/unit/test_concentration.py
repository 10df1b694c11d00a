"""The share of key blocks, on maps whose answer is known."""

import pytest
import torch

from dit_accel.tests.bench.concentration import key_block_share


def test_flat_attention_needs_the_mass_itself():
    x = torch.zeros(1, 2, 640, 64)
    assert key_block_share(x, x) == pytest.approx(0.9)
    assert key_block_share(x, x, mass=0.45) == pytest.approx(0.5)


def test_attention_to_one_block_needs_one_block():
    q = torch.zeros(1, 1, 640, 64)
    k = torch.zeros(1, 1, 640, 64)
    q[..., 0], k[:, :, 128:192, 0] = 100, 100
    assert key_block_share(q, k) == pytest.approx(0.1)


def test_random_attention_needs_nearly_all():
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 2, 2048, 128, generator=generator) for _ in "qk")
    assert 0.85 < key_block_share(q, k) < 0.91


def test_too_few_tokens_are_refused():
    with pytest.raises(ValueError, match="at least 64 tokens, found 10"):
        key_block_share(torch.zeros(1, 1, 10, 64), torch.zeros(1, 1, 10, 64))
