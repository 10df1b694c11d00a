"""One forward under the override, or left alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...attention import reasons
from ...attention.account.forward_statistics import ForwardStatistics
from ...attention.account.stopwatch import Stopwatch
from ...attention.layout import TokenLayout
from ...attention.run import Run
from ..compat import other_sparse_attention, unless_out_of_memory
from ..families import Family, ForwardInputs, family_of
from .forward_state import FORWARD_KEY, ForwardState
from .numbering import number_blocks, places_move
from .override import OVERRIDE_KEY, uncompiled_override


@dataclass(frozen=True)
class Forward:
    """One forward of the model; may be computed twice. layout: its tokens, or why it must be left alone; reason: why it
    is dense as a whole, or None. inputs: of the network; options: the transformer_options that it came with."""

    run: Run
    model: Any
    family: Family | None
    layout: TokenLayout | str
    calls: int
    reason: str | None
    step: int
    sigma: float
    options: Mapping[str, Any]
    inputs: ForwardInputs

    @classmethod
    def of(cls, run: Run, model, inputs: ForwardInputs, sigmas: Tensor, options: Mapping[str, Any]) -> Forward:
        """sigmas [B]: noise level of every row."""
        family = family_of(model)
        layout = _layout(family, model, inputs) if family else reasons.FAMILY
        layout = layout if isinstance(layout, str) else _other_owner(options) or layout
        sigma = max(sigmas.flatten().tolist())
        reason = None if isinstance(layout, str) else _dense_reason(run, layout, sigma)
        calls = family.calls(model, inputs) if family else 0
        return cls(run, model, family, layout, calls, reason, run.begin(sigma), sigma, options, inputs)

    def compute(
        self, apply: Callable[[Mapping[str, Any]], Tensor], touched: bool, reason: str | None = None
    ) -> tuple[Tensor, ForwardStatistics]:
        """The result of apply(transformer_options) and what was counted in it. touched: whether the override is
        installed even where all is dense. reason: why it must be dense now."""
        reason = reason or self.reason
        facts = {"expected": self.calls, "step": self.step, "sigma": self.sigma}
        watch = Stopwatch(self.inputs.x.device)
        if isinstance(self.layout, str):
            out, statistics = apply(self.options), ForwardStatistics.all_dense(self.layout, **facts)
        elif reason and not touched:
            out, statistics = apply(self.options), ForwardStatistics.all_dense(reason, **facts)
        else:
            statistics = ForwardStatistics(whole=reason, **facts)
            out = apply(self._options(self.layout, statistics, reason))
        watch.mark()
        statistics.watch = watch
        return out, statistics

    def _options(self, layout: TokenLayout, statistics: ForwardStatistics, reason: str | None) -> dict[str, Any]:
        observer = self.run.observer
        statistics.observed = observer is not None and observer.observes(self.step)
        forward = ForwardState(
            run=self.run,
            model=self.model,
            family=self.family,
            layout=layout,
            branches=_branches(self.options, self.inputs.x.shape[0]),
            previous=self.options.get(OVERRIDE_KEY),
            statistics=statistics,
            dense_reason=reason,
        )
        options = {**self.options, FORWARD_KEY: forward, OVERRIDE_KEY: uncompiled_override()}
        if self.family.unnumbered and places_move(options):
            options = number_blocks(options, self.calls)
        return options


def _layout(family: Family, model, inputs: ForwardInputs) -> TokenLayout | str:
    return unless_out_of_memory(lambda: family.layout(model, inputs), lambda: reasons.OUT_OF_MEMORY)


def _branches(options, batch: int) -> tuple:
    """Ids of the conditioning branches in the batch; none when a model wrapper has cut the batch to other parts."""
    branches = tuple(options.get("uuids", ()))
    return branches if branches and batch % len(branches) == 0 else ()


def _other_owner(options) -> str | None:
    other = other_sparse_attention(options)
    return f"{reasons.OTHER_OVERRIDE}: {other}" if other else None


def _dense_reason(run: Run, layout: TokenLayout, sigma: float) -> str | None:
    """Why the forward is dense as a whole; the first reason counts."""
    if run.dense_reason is not None:
        return run.dense_reason
    if layout.video < run.budget.min_tokens:
        return reasons.TOO_SHORT
    if sigma not in run.window:
        return reasons.OUTSIDE_WINDOW
    return None
