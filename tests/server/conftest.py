"""One ComfyUI server for all graphs: our pack under a folder name with a space, and the stand-ins."""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from dit_accel.accel.headless.server import Graph, Server
from dit_accel.tests.support import checkpoints, graphs

REPOSITORY = Path(__file__).parents[2]
# The tests compare in fp32 with what PyTorch computes; a GPU, or Triton's interpreter, would only add noise.
ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "0"}
ARGUMENTS = ["--cpu", "--fp32-unet", "--use-pytorch-cross-attention"]


@dataclass
class Result:
    """What a graph left behind: latents in the order of their read nodes (video and audio are two), run summaries,
    other outputs by name, and its part of the log."""

    latents: list[np.ndarray]
    runs: list[dict]
    outputs: dict[str, list]
    log: str

    @property
    def latent(self) -> np.ndarray:
        (latent,) = self.latents
        return latent

    @property
    def run(self) -> dict:
        """The last sampling run."""
        return self.runs[-1]


class Player:
    """Runs graphs on a server and collects what they leave."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def __call__(self, graph: Graph, timeout: float = 120.0) -> Result:
        mark = self.server.mark()
        entry = self.server.run(graph, timeout)
        by_node = entry["outputs"]
        outputs: dict[str, list] = {}
        for node in sorted(by_node, key=list(graph).index):
            for name, values in by_node[node].items():
                outputs.setdefault(name, []).extend(values)
        return Result(
            latents=[np.load(path) for path in outputs.pop("path", [])],
            runs=outputs.pop("runs", []),
            outputs=outputs,
            log=self.server.log_since(mark),
        )

    def until_it_waits(self, graph: Graph, timeout: float = 60.0) -> str:
        """Posts a graph in which a stand-in waits for an interrupt; returns its prompt id once it does."""
        mark = self.server.mark()
        prompt = self.server.post(graph)
        deadline = time.monotonic() + timeout
        while "a stand-in waits" not in self.server.log_since(mark):
            assert time.monotonic() < deadline, self.server.log_tail()
            time.sleep(0.02)
        return prompt

    def hold(self) -> str:
        """Halts the queue until an interrupt."""
        graph = graphs.Graph()
        graph.add("StandinHold", nonce=graphs.nonce())
        return self.until_it_waits(graph)


@pytest.fixture(scope="session")
def server_base(comfyui, tmp_path_factory) -> Iterator[Path]:
    """Base directory with the tiny checkpoints. Together they are large, so pytest is not left to keep them."""
    base = tmp_path_factory.mktemp("comfyui base")
    models = base / "models" / "diffusion_models"
    models.mkdir(parents=True)
    checkpoints.build(comfyui, models)
    yield base
    shutil.rmtree(models)


@pytest.fixture(scope="session")
def server(comfyui, server_base, tmp_path_factory):
    links = tmp_path_factory.mktemp("packs")
    (links / "dit accel-pack").symlink_to(REPOSITORY)
    packs = [links / "dit accel-pack", Path(__file__).parent / "standins"]
    with Server(comfyui, server_base, packs, ARGUMENTS, ENVIRONMENT) as running:
        yield running


@pytest.fixture(scope="session")
def play(server) -> Player:
    return Player(server)


@pytest.fixture(scope="session")
def play_without_pack(comfyui, server_base, tmp_path_factory):
    """A second server that has only the stand-ins."""
    base = tmp_path_factory.mktemp("base without the pack")
    (base / "models").symlink_to(server_base / "models")
    with Server(comfyui, base, [Path(__file__).parent / "standins"], ARGUMENTS, ENVIRONMENT) as running:
        assert not running.object_info("DitAccelSparseAttention")
        yield Player(running)
