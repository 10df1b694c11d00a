"""Statistics of what enters linear layers."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dit_accel.accel.quant.activations import Activations
from dit_accel.tests.support.closeness import assert_close


def tokens(seed: int, *shape: int, dtype=torch.float32) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 5).to(dtype)


def watching() -> Activations:
    activations = Activations()
    activations.watching = True
    return activations


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_statistics_of_all_rows_of_several_evaluations(dtype):
    activations, parts = watching(), [tokens(0, 2, 7, 6, dtype=dtype), tokens(1, 5, 6, dtype=dtype)]
    for part in parts:
        activations.add("layer", part)
    activations.add("other", tokens(2, 6, dtype=dtype))
    found = activations.close()
    rows = torch.cat([part.reshape(-1, 6) for part in parts]).double()
    assert found.keys() == {"layer", "other"}
    assert (found["layer"].rows, found["other"].rows) == (19, 1)
    assert found["layer"].largest.dtype == found["layer"].mean_square.dtype == torch.float32
    assert torch.equal(found["layer"].largest.double(), rows.abs().amax(0))
    assert_close(found["layer"].mean_square, rows.square().mean(0))


def test_large_values_in_half_precision_do_not_overflow():
    activations = watching()
    activations.add("layer", torch.full((3, 2), 60000.0, dtype=torch.float16))
    found = activations.close()["layer"]
    assert found.largest.tolist() == [60000.0] * 2
    assert found.mean_square.tolist() == pytest.approx([3.6e9] * 2, rel=1e-5)


def test_only_while_watching():
    activations = Activations()
    activations.add("layer", tokens(0, 4, 3))
    assert activations.close() == {}


def test_nothing_is_kept_when_it_is_closed():
    activations = watching()
    activations.add("layer", tokens(0, 4, 3))
    assert activations.close().keys() == {"layer"}
    assert activations.close() == {}


def test_no_copy_of_the_input_is_made():
    """An MLP's hidden tokens are the largest tensor of a model; fp32 ones beside them would not fit."""
    x = tokens(0, 2, 64, 256, dtype=torch.bfloat16)
    made = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if out.untyped_storage().data_ptr() != x.untyped_storage().data_ptr():
                made.append(out.numel())
            return out

    activations = watching()
    with Sizes():
        activations.add("layer", x)
        activations.add("layer", x)
    assert max(made) == 256
    assert activations.close()["layer"].rows == 2 * 2 * 64


def test_a_layer_that_is_given_nothing_adds_nothing():
    activations = watching()
    activations.add("layer", tokens(0, 0, 3))
    assert activations.close() == {}
    activations.add("layer", tokens(0, 2, 0, 3))
    activations.add("layer", tokens(0, 2, 3))
    assert activations.close()["layer"].rows == 2
