"""From a model that was recorded to its profile."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ...attention.profiles.allocate import make_profile
from ...attention.profiles.profile import Profile
from ...attention.reasons import commonest
from ...report.pictures import to_tensor
from ...report.profile_picture import profile_picture
from .model_report import find_runs, no_run
from .patch import ATTENTION, patch_of


class Profiled(NamedTuple):
    """image [1, H, W, 3] in 0..1."""

    profile: Profile
    image: Tensor
    text: str


def profile_of(samples: Tensor, model, target: str, target_value: float) -> Profiled:
    """The profile that meets the target, from what Record measured in the run that made the latent `samples`.

    Raises ValueError naming the input where nothing was recorded or the target makes no sense.
    """
    patch = patch_of(model)
    if patch is None or patch.recorded != ATTENTION:
        actual = "one that no Record has watched" if patch is None or not patch.recorded else "one of linear layers"
        raise ValueError(f"model: expected a recording of attention, by Record (DiT Accel), found {actual}")
    runs = find_runs(samples, [patch])
    if not runs:
        raise ValueError(f"samples: {no_run([patch])}")
    recording = runs[-1].recording
    if recording is None:
        why = "; ".join((commonest(runs[-1].dense), *runs[-1].notes))
        raise ValueError(f"samples: nothing was measured in the run that made them: {why}")
    profile = make_profile(recording, target, target_value)
    return Profiled(profile, to_tensor(profile_picture(recording, profile)), _words(profile))


def _words(profile: Profile) -> str:
    met = "" if profile.met else " (not met)"
    return (
        f"{profile.target} {profile.target_value:g}{met}: {profile.pattern} on {profile.model}, {len(profile.layers)} "
        f"layers of {profile.heads} heads; expected density {_mean(profile.density):.3f} and error "
        f"{_mean(profile.error):.3f}, the layers' means\n{profile.note}"
    )


def _mean(values: tuple[float, ...]) -> float:
    return sum(values) / len(values)
