"""Installing sparse attention on a clone of a ComfyUI model, at graph time and without GPU work."""

from __future__ import annotations

import logging
from collections import deque

from ..attention import reasons
from ..attention.fits import read_fits
from ..attention.gate import Gate
from ..attention.layout import TokenLayout
from ..attention.run import Run, Settings
from ..attention.schedule import SigmaWindow, full_steps
from ..attention.statistics import ForwardStatistics, RunSummary
from .compat import is_compiled, layers_with_own_backend, other_sparse_attention
from .families import ForwardInputs, family_of
from .models import gate_files
from .numbering import number_blocks, places_move
from .override import FORWARD_KEY, OVERRIDE_KEY, Forward, uncompiled_override

KEY = "dit_accel.sparse_attention"
RUN_KEY = "dit_accel_run"

log = logging.getLogger("dit_accel")


def install(model, settings: Settings):
    """A clone of the ModelPatcher `model` whose video self-attention is sparse; an earlier install on it is
    replaced. The clone's attachment `KEY` is the `Patch`, with the summaries of its last runs."""
    from comfy.patcher_extension import CallbacksMP, WrappersMP

    clone = model.clone()
    patch = Patch(settings)
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
    """What one node adds to a model. Holds settings and a few CPU summaries, never a tensor."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.history: deque[RunSummary] = deque(maxlen=8)
        self._sampling = False

    def outer_sample(self, executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
        """OUTER_SAMPLE wrapper: a fresh Run for this sampling run, closed whatever happens in it."""
        import comfy.model_patcher

        guider = executor.class_obj
        run = self._start(guider.model_patcher, sigmas)
        original = guider.model_options
        guider.model_options = comfy.model_patcher.create_model_options_clone(original)
        guider.model_options.setdefault("transformer_options", {})[RUN_KEY] = run
        self._sampling = True
        try:
            return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
        finally:
            self._sampling = False
            guider.model_options = original
            summary = run.close()
            self.history.append(summary)
            log.info("DiT Accel: %s", summary.line())

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
        percent_to_sigma = model_patcher.get_model_object("model_sampling").percent_to_sigma
        budget = self.settings.budget.resolve(full_steps(sigmas.tolist(), percent_to_sigma))
        return Run(
            self.settings,
            budget,
            SigmaWindow.of(budget, lambda percent: float(percent_to_sigma(percent))),
            type(network).__name__,
            Gate(read_fits(gate_files())),
        )

    def apply_model(self, executor, x, t, c_concat, c_crossattn, control, transformer_options, **kwargs):
        """APPLY_MODEL wrapper: describes this forward and installs the override on a copy of the options.

        Installing per forward means that no node placed after ours can switch us off unseen. A forward that stays
        dense as a whole is left untouched, but not under torch.compile: what it makes of a forward without the
        override it would run for all later ones. All waiting for the device happens here: once for sigma, once for
        the statistics.
        """
        run = transformer_options.get(RUN_KEY)
        if run is None:
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

        model = diffusion_model(executor.class_obj)
        family = family_of(model)
        inputs = ForwardInputs(x, c_crossattn, kwargs)
        layout = family.layout(model, inputs) if family else reasons.FAMILY
        calls = family.calls(model, inputs) if family else 0
        untouched = layout if isinstance(layout, str) else _owner(transformer_options)
        reason = untouched or _dense_reason(run, layout, transformer_options)
        if untouched or (reason and not is_compiled(executor.class_obj, transformer_options)):
            run.add(ForwardStatistics.all_dense(reason, calls))
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

        forward = Forward(
            run=run,
            model=model,
            family=family,
            layout=layout,
            branches=_branches(transformer_options, x.shape[0]),
            previous=transformer_options.get(OVERRIDE_KEY),
            statistics=ForwardStatistics(expected=calls),
            dense_reason=reason,
        )
        options = {**transformer_options, FORWARD_KEY: forward, OVERRIDE_KEY: uncompiled_override()}
        if family.unnumbered and places_move(options):
            options = number_blocks(options, calls)
        out = executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
        run.add(forward.statistics)
        return out


def _branches(options, batch: int) -> tuple:
    """Ids of the conditioning branches in the batch; none when a model wrapper has cut the batch to other parts."""
    branches = tuple(options.get("uuids", ()))
    return branches if branches and batch % len(branches) == 0 else ()


def _owner(options) -> str | None:
    other = other_sparse_attention(options)
    return f"{reasons.OTHER_OVERRIDE}: {other}" if other else None


def _dense_reason(run: Run, layout: TokenLayout, options) -> str | None:
    if run.dense_reason is not None:
        return run.dense_reason
    if layout.video < run.budget.min_tokens:
        return reasons.TOO_SHORT
    if float(options["sigmas"].max()) not in run.window:
        return reasons.OUTSIDE_WINDOW
    return None


def diffusion_model(base_model):
    """The network inside a ComfyUI BaseModel; torch.compile wraps it and keeps the original inside."""
    return getattr(base_model.diffusion_model, "_orig_mod", base_model.diffusion_model)
