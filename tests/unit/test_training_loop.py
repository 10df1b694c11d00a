"""The training script's loop: it stops in time, and goes on as if it had not stopped."""

import itertools
import math

import pytest
import torch

from dit_accel.tests.train import loop

STEPS = 40


def stretch(folder, deadline: float) -> tuple[bool, loop.Training]:
    weight = torch.nn.Parameter(torch.ones(4))
    training = loop.Training(folder, "toy", {"weight": weight}, learning_rate=0.1)

    def loss(step: int) -> torch.Tensor:
        target = torch.randn(4, generator=torch.Generator().manual_seed(step))
        return (weight - target).square().mean()

    return training.run(STEPS, deadline, loss, log_every=5), training


def test_an_interrupted_training_goes_the_same_way(tmp_path, monkeypatch):
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    done, whole = stretch(tmp_path / "whole", deadline=math.inf)
    assert done

    # A clock that moves on by a second whenever it is looked at.
    clock = itertools.count()
    monkeypatch.setattr(loop.time, "monotonic", lambda: next(clock))
    reached = []
    while not reached or reached[-1] < STEPS:
        done, parts = stretch(tmp_path / "parts", deadline=next(clock) + 20)
        reached.append(parts.step)
        assert done == (parts.step == STEPS)
    assert len(reached) > 2
    for name in ("parameters", "average"):
        assert torch.equal(getattr(whole, name)["weight"], getattr(parts, name)["weight"])
    assert not torch.equal(whole.parameters["weight"], whole.average["weight"])


@pytest.mark.parametrize(("step", "factor"), [(0, 0.01), (99, 1.0), (500, 1.0), (850, 0.5), (999, 1 / 300)])
def test_the_rate_rises_stays_and_falls(step, factor):
    assert loop.rate(step, 1000) == pytest.approx(factor)
