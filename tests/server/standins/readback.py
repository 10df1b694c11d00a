"""Output nodes: what the tests read back from a run."""

import dataclasses
import gc
import uuid
from pathlib import Path

import folder_paths
import numpy as np
from comfy_api.latest import io

from dit_accel.tests.server.standins.models import CATEGORY
from dit_accel.tests.server.standins.pack import KEY, module


class ReadLatent(io.ComfyNode):
    """A file for the latent, or for each stream of a nested one."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="StandinReadLatent",
            category=CATEGORY,
            is_output_node=True,
            inputs=[io.Latent.Input("samples")],
        )

    @classmethod
    def execute(cls, samples):
        latent = samples["samples"]
        paths = []
        for stream in latent.unbind() if latent.is_nested else [latent]:
            path = Path(folder_paths.get_output_directory(), f"{uuid.uuid4()}.npy")
            path.parent.mkdir(exist_ok=True)
            np.save(path, stream.cpu().numpy())
            paths.append(str(path))
        return io.NodeOutput(ui={"path": paths})


class History(io.ComfyNode):
    """The summaries that the pack left on a model, oldest first; after sampling."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="StandinHistory",
            category=CATEGORY,
            is_output_node=True,
            inputs=[io.Model.Input("model"), io.Latent.Input("samples")],
        )

    @classmethod
    def execute(cls, model, samples):
        patch = model.get_attachment(KEY)
        return io.NodeOutput(ui={"runs": [_summary(run) for run in patch.history] if patch else []})


def _summary(run):
    """Without what JSON cannot hold, or what nobody reads: tensors, and marks of latents."""
    return dataclasses.asdict(dataclasses.replace(run, recording=None, start=None, end=None))


class State(io.ComfyNode):
    """What is alive in the process of the pack's per-run state."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="StandinState", category=CATEGORY, is_output_node=True, inputs=[io.String.Input("nonce")]
        )

    @classmethod
    def execute(cls, nonce):
        gc.collect()
        kinds = {
            "runs": module("attention.run").Run,
            "caches": module("attention.memory").TensorCache,
            "plans": module("attention.plan").SparsePlan,
        }
        alive = {name: [x for x in gc.get_objects() if type(x) is kind] for name, kind in kinds.items()}
        counts = {name: len(objects) for name, objects in alive.items()}
        counts["bytes"] = sum(cache.bytes for cache in alive["caches"])
        return io.NodeOutput(ui={"state": [counts]})


NODES = [ReadLatent, History, State]
