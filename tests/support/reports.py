"""Graphs with a report on a run, and what the report node left behind."""

from dit_accel.tests.support.graphs import SMALL, Graph


def report(graph: Graph, model: list, samples: list, **inputs) -> list:
    return graph.add("DitAccelReport", model=model, samples=samples, **inputs)


def payloads(result) -> list[dict]:
    """Of all report nodes, in their order in the graph."""
    return result.outputs["dit_accel_report"]


def texts(result) -> list[str]:
    return result.outputs["text"]


def small(graph: Graph, model: list, seed: int = 7, after: list | None = None, **settings) -> list:
    """Samples the tiny model; after: samples that must be there first."""
    latent = graph.empty_latent(SMALL)
    if after is not None:
        latent = graph.add("StandinAfter", samples=latent, after=after)
    return graph.ksampler(model, latent, **{"seed": seed, "steps": 2, "cfg": 1.0, **settings})


def half(graph: Graph, model: list, latent: list, first: int, last: int, steps: int = 4) -> list:
    """Steps first..last of a schedule."""
    return graph.add(
        "KSamplerAdvanced",
        model=model,
        add_noise="enable" if first == 0 else "disable",
        noise_seed=7,
        steps=steps,
        cfg=1.0,
        sampler_name="euler",
        scheduler="simple",
        positive=graph.conditioning(100),
        negative=graph.conditioning(200),
        latent_image=latent,
        start_at_step=first,
        end_at_step=last,
        return_with_leftover_noise="enable" if last < steps else "disable",
    )
