"""Writing ComfyUI graphs in API format."""

import itertools

from dit_accel.tests.support.checkpoints import TEXT_WIDTH

_nonces = itertools.count()

# (frames, height, width) in pixels. SMALL: 2 x 8 x 8 video tokens; LARGE: 5 x 16 x 16.
SMALL = (5, 128, 128)
LARGE = (17, 256, 256)

# Every attention call of the model is sparse, and keeps what the numbers say.
BUDGET = {
    "preset": "custom",
    "top_p": 1.0,
    "floor": 1.0,
    "max_density": 1.0,
    "dense_first": 0.0,
    "dense_last": 0.0,
    "dense_blocks": "",
    "min_tokens": 0,
}


def nonce() -> str:
    """A string that no graph held before: what depends on it is not taken from the cache."""
    return str(next(_nonces))


class Graph(dict):
    """Node id -> node. `add` returns the link to a node's first output."""

    def add(self, class_type: str, **inputs) -> list:
        # Nodes may have been taken out.
        name = next(name for name in map("n{}".format, itertools.count(len(self))) if name not in self)
        self[name] = {"class_type": class_type, "inputs": inputs}
        return [name, 0]

    def load(self, checkpoint: str) -> list:
        return self.add("UNETLoader", unet_name=f"{checkpoint}.safetensors", weight_dtype="default")

    def accelerate(
        self, model: list, fallback: str = "reference", pattern: str = "svg2", guard: str = "on", **budget
    ) -> list:
        """Our node, with `BUDGET` changed by the given numbers."""
        return self.add(
            "DitAccelSparseAttention",
            model=model,
            pattern=pattern,
            precision="auto",
            token_order="auto",
            guard=guard,
            fallback=fallback,
            budget=self.add("DitAccelBudget", **{**BUDGET, **budget}),
        )

    def conditioning(self, seed: int, **options) -> list:
        settings = {"tokens": 24, "width": TEXT_WIDTH, "padding": 0, "vision": 0, "byt5": 0, **options}
        return self.add("StandinConditioning", seed=seed, **settings)

    def empty_latent(self, size: tuple[int, int, int], kind: str = "EmptyHunyuanLatentVideo") -> list:
        """A video of (frames, height, width) in pixels."""
        length, height, width = size
        latent = self.add(kind, width=width, height=height, length=length, batch_size=1)
        return self.add("StandinNonce", samples=latent, nonce=nonce())

    def ksampler(self, model: list, latent: list, **settings) -> list:
        inputs = {
            "seed": 7,
            "steps": 3,
            "cfg": 4.0,
            "sampler_name": "euler",
            "scheduler": "simple",
            "denoise": 1.0,
            **settings,
        }
        inputs.setdefault("positive", self.conditioning(100))
        inputs.setdefault("negative", self.conditioning(200))
        return self.add("KSampler", model=model, latent_image=latent, **inputs)

    def custom_sampler(self, model: list, latent: list, guider: str) -> list:
        """SamplerCustomAdvanced, 3 steps, with a BasicGuider or a CFGGuider."""
        prompts = {"conditioning": self.conditioning(100)}
        if guider == "CFGGuider":
            prompts = {"positive": self.conditioning(100), "negative": self.conditioning(200), "cfg": 4.0}
        return self.add(
            "SamplerCustomAdvanced",
            noise=self.add("RandomNoise", noise_seed=7),
            guider=self.add(guider, model=model, **prompts),
            sampler=self.add("KSamplerSelect", sampler_name="euler"),
            sigmas=self.add("BasicScheduler", model=model, scheduler="simple", steps=3, denoise=1.0),
            latent_image=latent,
        )

    def record(self, model: list, what: str = "attention") -> list:
        return self.add("DitAccelRecord", model=model, what=what)

    def read(self, samples: list, model: list) -> None:
        """Output nodes for the latent and for the run statistics on `model`."""
        self.add("StandinReadLatent", samples=samples)
        self.add("StandinHistory", model=model, samples=samples)


def video(checkpoint: str, patch=lambda graph, model: model, size=SMALL, **sampler) -> tuple[Graph, list]:
    """Load, patch, KSampler with CFG, read back: the graph and the sampled latent."""
    graph = Graph()
    model = patch(graph, graph.load(checkpoint))
    samples = graph.ksampler(model, graph.empty_latent(size), **sampler)
    graph.read(samples, model)
    return graph, samples
