"""What recording and the guard cost, whether a profile keeps its word, and whether predicted times come true:
`python -m dit_accel.tests.bench budgets --json FILE`, with the bundled model in ComfyUI, a quarter of an hour on a CPU.
"""

import argparse
import json
import statistics
from dataclasses import replace

import torch

from dit_accel.accel.attention.account.run_summary import RunSummary
from dit_accel.accel.attention.budget import Budget
from dit_accel.accel.attention.profiles.allocate import make_profile
from dit_accel.accel.attention.profiles.predict import predict
from dit_accel.accel.attention.run import Settings
from dit_accel.accel.cli.machine import machine
from dit_accel.accel.cli.table import table
from dit_accel.accel.comfy.sparse import patch
from dit_accel.accel.headless.embedded import import_comfyui
from dit_accel.accel.headless.server import find_comfyui
from dit_accel.tests.support import bundled

SIZE, LARGE = (33, 192, 320), (33, 320, 480)  # 2,160 and 5,400 tokens
STEPS = 20
ERROR = 0.05
MEASURED = ("bunny", 7)
UNSEEN = (("fox", 11), ("street", 12), ("earth", 13))
BUDGET = Budget(top_p=0.8, floor=0.02, min_tokens=0)


def measure(size: tuple[int, int, int] = SIZE, large: tuple[int, int, int] = LARGE, steps: int = STEPS) -> list[dict]:
    """A row for each question."""
    model = bundled.load()

    def run(patched, prompt, seed, size=size) -> RunSummary:
        bundled.sample(patched, prompt, seed, size, steps)
        return patch.patch_of(patched).history[-1]

    def sparse(budget: Budget = BUDGET, guard: str = "off"):
        return patch.install(model, Settings(fallback="reference", guard=guard, budget=budget))

    rows = [recording_row(run(patch.record(model, patch.ATTENTION), *MEASURED, size=large), large)]
    recorded = run(patch.record(model, patch.ATTENTION), *MEASURED)
    rows.append(recording_row(recorded, size))
    profile = make_profile(recorded.recording, "error", ERROR)
    budget = replace(BUDGET, profile=profile)
    for prompt, seed in UNSEEN:
        with bundled.exact_errors() as errors:
            summary = run(sparse(budget), prompt, seed)
        row = {"prompt": prompt, "seed": seed, "asked": ERROR, "measured": statistics.mean(errors)}
        rows.append({"what": "profile", **row, "density": summary.density, "calls": len(errors)})

    timed = run(patch.record(sparse(), patch.ATTENTION), *MEASURED).recording
    again = make_profile(timed, "error", ERROR)
    summary = run(sparse(replace(BUDGET, profile=again)), *UNSEEN[0])
    predicted = predict(timed.timing, again.density)
    for kind, seconds in (("sparse", predicted.sparse_step), ("dense", predicted.dense_step)):
        real = [step.seconds for step in summary.timeline.steps if (step.dense is None) == (kind == "sparse")]
        rows.append({"what": "prediction", "step": kind, "predicted": seconds, "measured": statistics.median(real)})

    guarded = run(sparse(guard="on"), *UNSEEN[0]).timeline.times
    dense = recorded.recording.timing.dense_step * steps
    rows.append({"what": "guard", "seconds": guarded.guard, "run": total(guarded), "dense_run": dense})
    return rows


def recording_row(run: RunSummary, size: tuple[int, int, int]) -> dict:
    observed = [step.seconds for step in run.timeline.steps if step.observed]
    measuring = run.timeline.times.recording
    plain = sum(observed) - measuring
    row = {"what": "recording", "size": size, "steps": len(observed), "seconds": measuring}
    return {**row, "share": measuring / plain}


def total(times) -> float:
    return sum(vars(times).values())


def show(rows: list[dict]) -> str:
    return table(("what", "of", "found"), [words(row) for row in rows])


def words(row: dict) -> tuple[str, str, str]:
    if row["what"] == "recording":
        size = "{} frames of {} x {}".format(*row["size"])
        return "recording", f"{size}: {row['steps']} observed steps", f"+{row['share']:.1%} of their time"
    if row["what"] == "profile":
        case = f"prompt {row['prompt']}, seed {row['seed']}: error {row['asked']} asked"
        return "profile", case, f"{row['measured']:.4f} over {row['calls']} calls, density {row['density']:.3f}"
    if row["what"] == "prediction":
        off = row["measured"] / row["predicted"] - 1
        return "prediction", f"a {row['step']} step: {row['predicted']:.2f} s", f"{row['measured']:.2f} s ({off:+.1%})"
    share, dense = row["seconds"] / row["run"], row["seconds"] / row["dense_run"]
    return "guard", f"{row['seconds']:.2f} s", f"{share:.2%} of the run, {dense:.2%} of a dense run"


def run(options: argparse.Namespace) -> int:
    """Prints the table, and writes options.json if asked."""
    import_comfyui(find_comfyui(), "--cpu")
    with torch.inference_mode():
        rows = measure()
    print(show(rows))
    if options.json:
        options.json.write_text(json.dumps({"machine": machine("no GPU"), "rows": rows}, indent=1) + "\n")
    return 0
