"""What both trainings share: a loop that stops in time, resumes where it stopped, and averages the weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dit_accel.accel.writing import replacing

WARM_UP = 100
DECAY = 0.3  # of all steps, at the end, linearly to zero
EMA = 0.998
SAVE_EVERY = 100.0  # seconds


def rate(step: int, steps: int) -> float:
    """Factor of the learning rate: a linear start, a plateau, a linear end."""
    return min(1.0, (step + 1) / WARM_UP, (steps - step) / (DECAY * steps))


class Training:
    """Parameters under training, by name; their average; the step reached; and the curve of losses.

    Everything is kept in one file, folder/<name>.pt, and read back from there when it exists.
    """

    def __init__(self, folder: Path, name: str, parameters: dict[str, Tensor], learning_rate: float) -> None:
        self.path = folder / f"{name}.pt"
        self.parameters = parameters
        self.learning_rate = learning_rate
        self.optimizer = torch.optim.AdamW(parameters.values(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
        self.average = {name: value.detach().clone() for name, value in parameters.items()}
        self.step = 0
        self.seconds = 0.0
        self.curve: list[tuple[int, float]] = []
        if self.path.exists():
            self._load()

    def run(self, steps: int, deadline: float, loss: Callable[[int], Tensor], log_every: int = 50) -> bool:
        """Trains until `steps` steps are done (True) or time.monotonic() reaches `deadline` (False), and saves.

        loss: the scalar to lower in step number n; it must draw its random numbers from n alone, so that a
        training that was interrupted goes the same way as one that was not.
        """
        saved = time.monotonic()
        recent: list[float] = []
        while self.step < steps and time.monotonic() < deadline:
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate * rate(self.step, steps)
            before = time.monotonic()
            value = loss(self.step)
            value.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.step += 1
            decay = min(EMA, self.step / (self.step + 10))
            torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in self.parameters.values()], 1 - decay)
            recent.append(value.item())
            self.seconds += time.monotonic() - before
            if self.step % log_every == 0:
                self.curve.append((self.step, sum(recent) / len(recent)))
                print(f"step {self.step}/{steps}  loss {self.curve[-1][1]:.4f}  {self.seconds:.0f} s", flush=True)
                recent.clear()
            if time.monotonic() - saved > SAVE_EVERY:
                self._save()
                saved = time.monotonic()
        self._save()
        return self.step >= steps

    def _save(self) -> None:
        state = {key: getattr(self, key) for key in ("average", "step", "seconds", "curve")}
        state["parameters"] = {name: value.detach() for name, value in self.parameters.items()}
        state["optimizer"] = self.optimizer.state_dict()
        with replacing(self.path) as partial:
            torch.save(state, partial)

    def _load(self) -> None:
        state: dict[str, Any] = torch.load(self.path, weights_only=True)
        for name, value in self.parameters.items():
            value.data.copy_(state["parameters"][name])
            self.average[name].copy_(state["average"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.curve = [tuple(point) for point in state["curve"]]
