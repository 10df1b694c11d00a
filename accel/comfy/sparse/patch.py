"""Installing sparse attention on a clone of a ComfyUI model, at graph time and without GPU work."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ...attention import reasons
from ...attention.account.marks import Mark, mark
from ...attention.account.run_summary import RunSummary
from ...attention.budget import Budget
from ...attention.cost.fits import read_fits
from ...attention.cost.gate import Gate
from ...attention.profiles.observer import observed_steps
from ...attention.run import Run, Settings
from ...attention.schedule import SigmaWindow, full_steps
from ...quant.activations import Activations, ChannelStatistics
from ..compat import diffusion_model, is_compiled, layers_with_own_backend, unless_out_of_memory
from ..families import ForwardInputs
from ..folders import gate_files
from ..quant.linears import watched_linears
from .badge import Badge
from .forward import Forward

KEY = "dit_accel.sparse_attention"
RUN_KEY = "dit_accel_run"
BADGE_KEY = "dit_accel_badge"
HISTORY = 8
ATTENTION, LINEAR = "attention", "linear"
NO_MARK = "out of memory: a report cannot find this run by its samples"
UNRECORDED = "out of memory: the inputs of linear layers were not recorded"
UNCHECKED = "out of memory: the guard did not check the result of every forward pass"

log = logging.getLogger("dit_accel")


def install(model, settings: Settings, node: str | None = None):
    """A clone of the ModelPatcher `model` whose video self-attention is sparse; an earlier install on it is
    replaced, but a recording goes on. node: the graph node to show progress on.

    The clone's attachment `KEY` is the `Patch`, with the summaries of its last runs."""
    earlier = patch_of(model)
    if earlier is None:
        return _attach(model, Patch(settings, node=node))
    return _attach(model, Patch(settings, node, earlier.recorded, earlier.history))


def record(model, recorded: str):
    """A clone of the ModelPatcher `model` whose runs are recorded, sparse or not. recorded: `attention`, or `linear`
    for the inputs of linear layers."""
    earlier = patch_of(model)
    if earlier is None:
        return _attach(model, Patch(Settings(sparse=False), recorded=recorded))
    return _attach(model, Patch(earlier.settings, earlier.node, recorded, earlier.history))


def patch_of(model) -> Patch | None:
    """What this pack's nodes added to the ModelPatcher `model`."""
    return model.get_attachment(KEY)


def _attach(model, patch: Patch):
    from comfy.patcher_extension import CallbacksMP, WrappersMP

    clone = model.clone()
    for kind, wrapper in (
        (WrappersMP.OUTER_SAMPLE, patch.outer_sample),
        (WrappersMP.APPLY_MODEL, patch.apply_model),
    ):
        clone.remove_wrappers_with_key(kind, KEY)
        clone.add_wrapper_with_key(kind, KEY, wrapper)
    clone.remove_callbacks_with_key(CallbacksMP.ON_PRE_RUN, KEY)
    clone.add_callback_with_key(CallbacksMP.ON_PRE_RUN, KEY, patch.pre_run)
    clone.set_attachments(KEY, patch)
    return clone


class Patch:
    """What the pack's nodes add to a model. Holds settings and a few CPU summaries, never a tensor of the model's.

    recorded: what Record watches, or None. linears: what it found in the last run, by layer. history: summaries of the
    last runs; clones of a clone share it, so that a report finds the run whichever of them it is given.
    """

    def __init__(
        self,
        settings: Settings,
        node: str | None = None,
        recorded: str | None = None,
        history: deque[RunSummary] | None = None,
    ) -> None:
        self.settings = settings
        self.node = node
        self.recorded = recorded
        self.linears: dict[str, ChannelStatistics] = {}
        self.history = deque(maxlen=HISTORY) if history is None else history
        self._sampling = False
        self._compiled_anew = False
        self._activations = Activations()

    def outer_sample(self, executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
        """OUTER_SAMPLE wrapper: a fresh Run for this sampling run, closed whatever happens in it."""
        import comfy.model_patcher

        guider = executor.class_obj
        run = self._start(guider.model_patcher, sigmas)
        run.start = _mark(run, latent_image)
        badge = Badge(self.node)
        original = guider.model_options
        guider.model_options = comfy.model_patcher.create_model_options_clone(original)
        options = guider.model_options.setdefault("transformer_options", {})
        options[RUN_KEY], options[BADGE_KEY] = run, badge
        self._sampling = True
        out = None
        try:
            with self._watch_linears(run, guider.model_patcher):
                out = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
            return out
        finally:
            self._sampling = False
            guider.model_options = original
            summary = _close(run, out)
            self.history.append(summary)
            badge.show(summary, done=True)
            log.info("DiT Accel: %s", summary.line())

    @contextmanager
    def _watch_linears(self, run: Run, model_patcher) -> Iterator[None]:
        if self.recorded != LINEAR:
            yield
            return
        self._activations = Activations()
        try:
            with watched_linears(diffusion_model(model_patcher.model), self._activations):
                yield
        finally:
            self.linears = unless_out_of_memory(self._activations.close, self._activations.stop) or {}
            if self._activations.stopped:
                run.remark(UNRECORDED)

    def pre_run(self, model_patcher, *args) -> None:
        """ON_PRE_RUN callback: a model that is prepared outside of its own sampling run is the second of a guider,
        which runs both under the first one's options."""
        if not self._sampling:
            log.info(
                "DiT Accel: no effect on the second model of a guider: it follows the first model's settings; put the "
                "node there"
            )

    def _start(self, model_patcher, sigmas) -> Run:
        network = diffusion_model(model_patcher.model)
        layers = layers_with_own_backend(network)
        if layers:
            log.info(
                "DiT Accel: %d attention layers of this checkpoint name a backend; in sparse steps their dense calls "
                "use ComfyUI's default one",
                layers,
            )
        schedule = sigmas.tolist()
        sampling = model_patcher.get_model_object("model_sampling")
        planned = unless_out_of_memory(
            lambda: _budget_and_window(self.settings.budget, sampling, schedule), lambda: None
        )
        budget, window = planned or (self.settings.budget, SigmaWindow())
        run = Run(
            self.settings,
            budget,
            window,
            type(network).__name__,
            Gate(read_fits(gate_files())),
            sigmas=schedule,
            observed=self.recorded == ATTENTION,
        )
        if planned is None:
            run.dense_reason = reasons.OUT_OF_MEMORY
        return run

    def apply_model(self, executor, x, t, c_concat, c_crossattn, control, transformer_options, **kwargs):
        """APPLY_MODEL wrapper: describes this forward and installs the override on a copy of the options.

        Installing per forward means that no node placed after ours can switch us off unseen. A forward that stays
        dense as a whole is left untouched, but not where it is recorded, and not under torch.compile: what it makes of
        a forward without the override it would run for all later ones. All waiting for the device happens here: once
        for sigma, once for the statistics.
        """
        run = transformer_options.get(RUN_KEY)
        if run is None:
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

        def apply(options):
            return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

        model = diffusion_model(executor.class_obj)
        # t, since a sampler that calls the model itself may leave `sigmas` out of the options.
        forward = Forward.of(run, model, ForwardInputs(x, c_crossattn, kwargs), t, transformer_options)
        self._activations.watching = forward.step in observed_steps(run.steps)
        compiled = is_compiled(executor.class_obj, transformer_options)
        timed = forward.reason == reasons.OUTSIDE_WINDOW and run.races(x.device)
        touched = run.observer is not None or compiled or timed
        out, statistics = forward.compute(apply, touched)
        if compiled and statistics.silent and not self._compiled_anew:
            # It ran what was compiled before this node was there: ComfyUI drops the guards that would tell.
            self._compiled_anew = True
            torch.compiler.reset()
            out, statistics = forward.compute(apply, touched)
        if run.guard.on and statistics.sparse:
            statistics.total = _total(run, out)
        statistics.read()
        if not statistics.finite:
            out, repeated = forward.compute(apply, touched, reasons.GUARD)
            repeated.total = _total(run, out)
            repeated.read()
            run.discard(statistics, mended=repeated.finite)
            statistics = repeated
        unless_out_of_memory(lambda: run.add(statistics), lambda: run.stop_observing(reasons.OUT_OF_MEMORY))
        transformer_options[BADGE_KEY].show(run)
        return out


def _budget_and_window(budget: Budget, sampling, schedule: list[float]) -> tuple[Budget, SigmaWindow]:
    """The concrete budget of a run and where in the noise schedule it is sparse."""
    budget = budget.resolve(full_steps(schedule, sampling.percent_to_sigma))
    return budget, SigmaWindow.of(budget, lambda percent: float(sampling.percent_to_sigma(percent)), schedule)


def _mark(run: Run, latent: Tensor) -> Mark | None:
    return unless_out_of_memory(lambda: mark(latent), lambda: run.remark(NO_MARK))


def _total(run: Run, out: Tensor) -> Tensor | None:
    """A scalar that is finite if a forward's result is."""
    return unless_out_of_memory(lambda: out.sum(dtype=torch.float32), lambda: run.remark(UNCHECKED))


def _close(run: Run, out: Tensor | None) -> RunSummary:
    """Frees a run that made the latent `out`, None if it failed, and sums it up."""
    run.free()
    end = None if out is None else _mark(run, out)

    def close() -> RunSummary:
        return run.close(end, finished=out is not None)

    def without_recording() -> RunSummary:
        run.stop_observing(reasons.OUT_OF_MEMORY)
        return close()

    return unless_out_of_memory(close, without_recording)
