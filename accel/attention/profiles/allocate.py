"""From what was recorded to a profile that meets a target: one error for all layers, or one speed for the model."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..account.recording import Recording
from .frontier import Frontier, frontier
from .predict import Measured, Prediction, measured, predict, seconds, sparse_call
from .profile import ERROR, SPEED, Profile, check_target

# The error of a profile that was asked for speed where there is none to be had.
USUAL_ERROR = 0.05
# Runs that were not recorded err so many times as much; measured in tests/bench/results.
UNSEEN = 1.15
HALVINGS = 40
# Of the largest error: no target is searched for below this part of it.
SMALLEST = 1e-6


def make_profile(recording: Recording, target: str, value: float) -> Profile:
    """The profile of `for_error` or `for_speed`; that for an error leaves a margin for other prompts and seeds than the
    one that was recorded. Raises ValueError as they do."""
    if target == SPEED:
        return for_speed(recording, value)
    return for_error(recording, value, UNSEEN)


def for_error(recording: Recording, error: float, margin: float = 1.0) -> Profile:
    """The cheapest profile with the relative L2 error / margin, at most, expected of each layer. Raises ValueError
    naming target_value unless 0 < error <= 1.

    A layer that misses it even where every head has the largest candidate top_p keeps everything: beyond that nothing
    was measured. Not met is a target that leaves no layer sparse.
    """
    check_target(ERROR, error)
    path = frontier(recording)
    position = _positions(path, error / margin)
    wanted = f"{error:g} with its margin" if margin > 1 else f"{error:g}"
    notes = []
    if full := _count(position == path.end):
        reason = f"even top_p {recording.top_p[-1]:g} leaves them an error above {wanted}"
        notes.append(f"{full} of {len(position)} layers keep everything: {reason}")
    if below := _count(position == 0):
        notes.append(f"{below} of {len(position)} layers stay below the error {wanted} with the least budget measured")
    prediction = predict(recording.timing, path.at(position)[0].tolist())
    met = full < len(position)
    return _profile(recording, path, position, (ERROR, error), met, [*notes, prediction.words()])


def for_speed(recording: Recording, speed: float) -> Profile:
    """The profile of least error, alike in all layers, whose step is predicted to be `speed` times as fast as a dense
    one. Raises ValueError naming target_value unless speed is finite and above 1.

    A layer that would take as long as a dense one keeps everything. A speed out of reach gives the fastest profile;
    where sparse attention brings no speed, the profile is the one for the error 0.05. Neither is `met`.
    """
    check_target(SPEED, speed)
    path = frontier(recording)
    timing = measured(recording.timing)
    why = timing if isinstance(timing, str) else _too_slow(timing, path)
    if isinstance(timing, str) or why is not None:
        notes = [
            f"sparse attention brings no speed here: {why}",
            f"this profile is for the error {USUAL_ERROR}",
        ]
        return _profile(recording, path, _positions(path, USUAL_ERROR), (SPEED, speed), False, notes)

    def reached(error: float) -> tuple[Tensor, Prediction, float]:
        position = _worth_it(timing, path, _positions(path, error))
        prediction = predict(recording.timing, path.at(position)[0].tolist())
        return position, prediction, prediction.speed or 0.0

    # From here on every layer has its least budget.
    high = path.least.max().item()
    position, prediction, fastest = reached(high)
    if met := fastest >= speed:
        # Below this, every layer keeps everything.
        low = max(path.densest.min().item() / 2, high * SMALLEST)
        for _ in range(HALVINGS):
            middle = math.sqrt(low * high)
            trial, predicted, reached_speed = reached(middle)
            if reached_speed >= speed:
                high, position, prediction = middle, trial, predicted
            else:
                low = middle
        notes = [f"{speed:.3g}x costs an error of {high:.2g} in each layer"]
        if full := _count(position == path.end):
            notes.append(f"{full} of {len(position)} layers keep everything")
    else:
        best = f"the least budget measured brings {fastest:.3g}x"
        notes = [f"{speed:.3g}x is out of reach: {best}, with errors up to {high:.2g}"]
    return _profile(recording, path, position, (SPEED, speed), met, [*notes, prediction.words()])


def _positions(path: Frontier, error: float) -> Tensor:
    return path.position(error).masked_fill(path.densest > error, path.end)


def _worth_it(timing: Measured, path: Frontier, position: Tensor) -> Tensor:
    """A layer that sparse calls would slow down keeps everything."""
    density, _ = path.at(position)
    slow = torch.tensor([sparse_call(timing, d) >= timing.dense_call for d in density.tolist()])
    return position.masked_fill(slow, path.end)


def _too_slow(timing: Measured, path: Frontier) -> str | None:
    least = path.density[:, 0].min().item()
    fastest = sparse_call(timing, least)
    if fastest < timing.dense_call:
        return None
    return f"a sparse call of density {least:.2f} takes {seconds(fastest)}, a dense one {seconds(timing.dense_call)}"


def _count(mask: Tensor) -> int:
    return int(mask.sum())


def _profile(
    recording: Recording, path: Frontier, position: Tensor, target: tuple[str, float], met: bool, notes: list[str]
) -> Profile:
    density, error = path.at(position)
    name, value = target
    return Profile(
        pattern=recording.pattern,
        model=recording.model,
        layers=recording.layers,
        heads=recording.heads,
        calls=recording.calls,
        floor=recording.floor,
        max_density=recording.max_density,
        top_p=tuple(map(tuple, path.top_p(position).tolist())),
        density=tuple(density.tolist()),
        error=tuple(error.tolist()),
        target=name,
        target_value=value,
        met=met,
        note="; ".join(notes),
    )
