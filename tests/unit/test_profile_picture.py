"""The picture of a profile, read back from its pixels."""

import math
from dataclasses import replace

import pytest
import torch
from PIL import Image

from dit_accel.accel.attention.account.recording import Recording
from dit_accel.accel.attention.profiles.allocate import for_error, for_speed
from dit_accel.accel.report.drawing import MUTED, RULE
from dit_accel.accel.report.profile_picture import DEPTHS, TARGET, profile_picture
from dit_accel.accel.report.scale import Scale
from dit_accel.tests.support.recordings import falling, mapped, random_recording


def where(picture: Image.Image, colour: tuple[int, int, int], tolerance: int = 3) -> torch.Tensor:
    """bool [H, W]"""
    pixels = (
        torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).int().view(picture.height, picture.width, 3)
    )
    return ((pixels - torch.tensor(colour)).abs() <= tolerance).all(-1)


def plot_of(picture: Image.Image) -> Image.Image:
    """What lies within the plot's frame."""
    frame = where(picture, MUTED, 60)
    rows, columns = (frame.sum(axis) > 0.5 * size for axis, size in ((1, picture.width), (0, picture.height)))
    (top, *_, bottom), (left, *_, right) = (line.nonzero().flatten().tolist() for line in (rows, columns))
    return picture.crop((left, top, right + 1, bottom + 1))


def runs(rows: torch.Tensor) -> list[float]:
    """Middles of runs of true values."""
    found = []
    for row in rows.nonzero().flatten().tolist():
        if found and row == found[-1][-1] + 1:
            found[-1].append(row)
        else:
            found.append([row])
    return [sum(run) / len(run) for run in found]


def three_layers() -> Recording:
    start = torch.tensor([0.02, 0.1, 0.5])[None, :, None].expand(1, 3, 2)
    return falling(start, torch.full((1, 3, 2), 4.0))


def test_choices_stand_at_their_density_and_error():
    recording = three_layers()
    profile = for_speed(recording, 9)
    # By hand: each layer at another error, and in the middle of the axis.
    densities, errors = (0.4, 0.5, 0.6), (0.03, 0.05, 0.1)
    profile = replace(profile, density=densities, error=errors, met=True)
    plot = plot_of(profile_picture(recording, profile))
    lines = runs(where(plot, RULE, 12).sum(1) > plot.width * 0.6)
    highest = 1.4 * max((level.error[..., 0].sum(-1) / 2).sqrt().max().item() for level in recording.levels)
    numbers = [n for n in (0.5, 0.2, 0.1, 0.05, 0.02, 0.01) if n <= highest][: len(lines)]
    assert len(numbers) >= 3
    depth = Scale(DEPTHS, 2.0)
    for number, (density, error) in enumerate(zip(densities, errors, strict=True)):
        decades = math.log(numbers[0] / error) / math.log(numbers[0] / numbers[-1])
        y = round(lines[0] + decades * (lines[-1] - lines[0]))
        disc = where(plot, depth.colour(number))[y - 1 : y + 2]
        x = round(density * (plot.width - 1))
        assert disc[:, x - 1 : x + 2].all(), number


def test_an_error_that_was_asked_for_is_a_line_through_the_choices():
    start = torch.tensor([0.06, 0.12, 0.2])[None, :, None].expand(1, 3, 2)
    recording = falling(start, torch.full((1, 3, 2), 4.0))
    profile = for_error(recording, 0.1)
    plot = plot_of(profile_picture(recording, profile))
    (asked,) = runs(where(plot, TARGET, 75).sum(1) > 300)
    for number, density in enumerate(profile.density):
        x = round(density * (plot.width - 1))
        assert where(plot, Scale(DEPTHS, 2.0).colour(number))[round(asked), x - 1 : x + 2].all(), number
    assert not where(profile_picture(recording, for_speed(recording, 1.2)), TARGET, 20).any()


def test_layers_that_keep_everything_have_their_own_mark_and_are_counted():
    recording = three_layers()
    some, none = for_error(recording, 0.1), for_error(recording, 0.9)
    assert 1.0 in some.density
    assert 1.0 not in none.density

    def corner(profile):
        plot = plot_of(profile_picture(recording, profile))
        width, height = plot.size
        return where(plot.crop((width - 45, height - 45, width - 8, height - 8)), MUTED).sum()

    assert corner(some) > 20
    assert corner(none) == 0


def test_every_layer_has_its_line_from_the_least_to_the_largest_candidate():
    start = torch.tensor([0.02, 0.2, 2.0])[None, :, None].expand(1, 3, 2)
    recording = falling(start, torch.full((1, 3, 2), 8.0), (0.2, 0.4, 0.6))
    plot = plot_of(profile_picture(recording, for_speed(recording, 9)))
    for number in range(3):
        columns = where(plot, Scale(DEPTHS, 2.0).colour(number), 12).any(0).nonzero().flatten()
        # A disc stands at the beginning.
        assert columns.min() == pytest.approx(0.2 * plot.width, abs=8)
        assert columns.max() == pytest.approx(0.6 * plot.width, abs=5)


@pytest.mark.parametrize(("layers", "heads"), [(1, 1), (6, 4), (60, 2)])
def test_any_number_of_layers_fits(layers, heads):
    recording = random_recording(2, layers, heads)
    sizes = {profile_picture(recording, for_error(recording, error)).width for error in (1e-5, 0.05, 1.0)}
    assert len(sizes) == 1
    assert 900 < sizes.pop() < 1100


def test_a_layer_without_any_error_is_no_obstacle():
    recording = mapped(random_recording(0), lambda level: replace(level, error=0 * level.error))
    assert profile_picture(recording, for_error(recording, 0.05)).width > 900
