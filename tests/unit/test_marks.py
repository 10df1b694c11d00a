"""A latent is recognised by a few of its values, and taken for no other."""

import pytest
import torch

from dit_accel.accel.attention.account.marks import VALUES, Mark, mark

SHAPE = (1, 16, 3, 20, 30)


def latent(seed: int = 0, shape=SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3


class Nested:
    """As ComfyUI holds video and sound together."""

    is_nested = True

    def __init__(self, *parts: torch.Tensor):
        self.parts = parts

    def unbind(self):
        return self.parts


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("seed", range(4))
def test_a_latent_is_recognised_through_half_precision(dtype, seed):
    before, after = mark(latent(seed)), mark(latent(seed).to(dtype))
    distance = before.distance(after)
    assert distance is not None and after.distance(before) is not None
    assert (distance == 0) == (dtype == torch.float32)


def test_other_seeds_are_other_latents():
    marks = [mark(latent(seed)) for seed in range(6)]
    assert all((a.distance(b) is None) == (a is not b) for a in marks for b in marks)


def test_a_change_in_a_few_values_is_seen_if_it_is_sampled():
    one = latent()
    other = one.clone()
    other[..., :10] = 0
    assert mark(one).distance(mark(other)) is None


def test_the_nearer_of_two_alike_is_known():
    """The same seed, dense and nearly so."""
    one = latent()
    near, far = one + 0.001, one + 0.01
    assert 0 == mark(one).distance(mark(one)) < mark(one).distance(mark(near)) < mark(one).distance(mark(far))


@pytest.mark.parametrize("shape", [(1, 16, 3, 20, 30), (2, 4, 8, 8), (1, 3), (1, 16, 1, 1, 1)])
def test_of_any_size(shape):
    found = mark(latent(shape=shape))
    numbers = latent(shape=shape).numel()
    assert found.size == numbers and len(found.values) == min(VALUES, numbers)
    assert found.values[0] == latent(shape=shape).flatten()[0].item()
    assert found.values[-1] == latent(shape=shape).flatten()[-1].item()
    assert found.distance(mark(latent(shape=shape))) == 0


def test_sizes_tell_apart():
    assert mark(torch.zeros(1, 4)).distance(mark(torch.zeros(1, 5))) is None


def test_a_long_latent_is_read_to_its_end():
    """Places are counted in fp64: fp32 has no room for the index of a long video's last value."""
    long = torch.zeros(1, (1 << 25) + 3, dtype=torch.int8)
    long[0, -1] = 1
    assert mark(long).values[-1] == 1


@pytest.mark.parametrize("batch", [1, 2])
def test_video_and_sound_are_the_same_packed_or_not(batch):
    video, sound = latent(1, (batch, 16, 3, 8, 8)), latent(2, (batch, 8, 40))
    packed = torch.cat([video.reshape(batch, 1, -1), sound.reshape(batch, 1, -1)], dim=-1)
    assert mark(Nested(video, sound)) == mark(packed)
    assert mark(Nested(video, sound)).distance(mark(Nested(sound, video))) is None


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_latent_that_is_not_finite_is_recognised(value):
    spoilt = latent()
    spoilt[..., ::2] = value
    assert mark(spoilt).distance(mark(spoilt.clone())) == 0
    assert mark(spoilt).distance(mark(latent())) is None
    assert mark(torch.full(SHAPE, value)).distance(mark(torch.full(SHAPE, value))) == 0


def test_nothing_is_like_nothing():
    empty = mark(torch.zeros(1, 16, 0, 8, 8))
    assert empty == Mark(0, ())
    assert empty.distance(empty) == 0
    assert mark(torch.zeros(SHAPE)).distance(mark(torch.zeros(SHAPE))) == 0
    assert mark(torch.zeros(SHAPE)).distance(mark(latent())) is None
