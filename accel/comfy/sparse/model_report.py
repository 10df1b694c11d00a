"""From a model that was sampled to the report on its run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor

from ...attention.account.marks import Mark, mark
from ...attention.account.run_summary import RunSummary
from ...report.advice import all_advice
from ...report.drawing import framed, paragraph
from ...report.heatmap import report_picture
from ...report.payload import payload
from ...report.pictures import to_tensor
from ...report.words import report_text
from .patch import HISTORY, Patch, patch_of

# The report in the metadata of saved files.
METADATA = "dit_accel_report"
WIDTH, MARGIN = 640, 16  # pixels of a picture that says why there is no report


class Report(NamedTuple):
    """image [1, H, W, 3] in 0..1; payload: for the browser."""

    image: Tensor
    text: str
    payload: dict[str, Any]


def report_on(samples: Tensor, model, model_2=None) -> Report:
    """The report on the run that made the latent `samples`; where there is none, a sentence that says so."""
    patches = [patch for patch in map(patch_of, filter(None, (model, model_2))) if patch is not None]
    if not patches:
        return _nothing(
            "No report: this model has passed neither Sparse Attention (DiT Accel) nor Record (DiT Accel). Put one of "
            "them between the loader and the sampler, and connect its model here."
        )
    summaries = find_runs(samples, patches)
    if not summaries:
        return _nothing(no_run(patches))
    runs = list(zip(_titles(summaries), summaries, strict=True))
    advice = all_advice(runs)
    text = report_text(runs, advice)
    return Report(to_tensor(report_picture(runs)), text, payload(runs, advice, text))


def find_runs(samples: Tensor, patches: Iterable[Patch]) -> list[RunSummary]:
    """The run that made the latent, after the one of another model that it went on from; none if no run is known to
    have made it."""
    patches = list(patches)
    last = _nearest(mark(samples), [run for patch in patches for run in patch.history])
    if last is None:
        return []
    # By identity: runs hold tensors, which have no one answer to ==.
    others = [run for patch in patches if not any(run is last for run in patch.history) for run in patch.history]
    before = _nearest(last.start, others)
    return [last] if before is None else [before, last]


def no_run(patches: Iterable[Patch]) -> str:
    """Why no run was found."""
    known = sum(len(patch.history) for patch in patches)
    if not known:
        return "No report: this model has not been sampled. Take the samples from a sampler that has this model."
    last = f"the last {known} runs" if known > 1 else "the last run"
    return (
        f"No report: none of {last} of this model made these samples. The last {HISTORY} are remembered; samples that "
        "another node has changed, cut or put together since then are not recognised."
    )


def keep_with_outputs(text: str, hidden) -> None:
    """Adds the report to what nodes that are executed later write into their files: to the workflow's metadata, or
    where there is none, as in runs through the API, to this node's entry in the prompt."""
    if hidden.extra_pnginfo is not None:
        hidden.extra_pnginfo[METADATA] = text
    elif hidden.prompt is not None:
        # A node that another node made while it ran is not in the prompt.
        hidden.prompt.get(hidden.unique_id, {}).setdefault("_meta", {})[METADATA] = text


def _nearest(latent: Mark | None, runs: Iterable[RunSummary]) -> RunSummary | None:
    """The newest of those runs whose result is nearest to the latent."""
    if latent is None:
        return None
    distances = [(latent.distance(run.end), run) for run in runs if run.end is not None]
    near = [(distance, run) for distance, run in distances if distance is not None]
    return min(reversed(near), key=lambda pair: pair[0])[1] if near else None


def _titles(runs: list[RunSummary]) -> list[str]:
    if len(runs) == 1:
        return [f"{runs[0].pattern} on {runs[0].model}"]
    return [
        f"{place} model: {run.pattern} on {run.model}" for place, run in zip(("First", "Second"), runs, strict=True)
    ]


def _nothing(sentence: str) -> Report:
    image = to_tensor(framed(paragraph(sentence, WIDTH), MARGIN))
    return Report(image, sentence, payload([], [], sentence))
