"""The counting sort against a stable sort."""

import pytest
import torch

from dit_accel.kernels.group import SEGMENTS, group


@pytest.mark.parametrize("backend", ["triton", "torch", "reference"])
@pytest.mark.parametrize(
    ("tokens", "count"), [(1, 1), (5, 3), (SEGMENTS - 1, 7), (SEGMENTS * 128, 16), (4099, 63), (4099, 64), (9000, 1000)]
)
def test_it_is_a_stable_sort(backend, tokens, count):
    random = torch.Generator().manual_seed(tokens)
    labels = torch.randint(count, (2, 1, tokens), generator=random, dtype=torch.int32)
    labels[0][labels[0] == count // 2] = 0  # a label that nobody has
    order, offsets = group(labels, count, backend=backend)
    assert order.dtype == offsets.dtype == torch.int32
    for row in range(2):
        expected = labels[row, 0].sort(stable=True)
        assert torch.equal(order[row, 0], expected.indices.int())
        sizes = torch.bincount(labels[row, 0], minlength=count)
        assert torch.equal(offsets[row, 0], torch.nn.functional.pad(sizes.cumsum(0), (1, 0)).int())


@pytest.mark.parametrize("backend", ["triton", "torch", "reference"])
def test_all_tokens_of_one_label(backend):
    labels = torch.full((1, 2, 700), 4, dtype=torch.int32)
    order, offsets = group(labels, 9, backend=backend)
    assert torch.equal(order, torch.arange(700, dtype=torch.int32).expand(1, 2, -1))
    assert offsets[0, 1].tolist() == [0, 0, 0, 0, 0, 700, 700, 700, 700, 700]
