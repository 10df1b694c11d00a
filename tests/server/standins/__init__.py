"""Stand-in nodes for the server tests: what stands around the sampler, and instruments to look inside."""

from comfy_api.latest import ComfyExtension

from . import disturbance, models, overrides, plans, readback


class StandinExtension(ComfyExtension):
    async def get_node_list(self):
        return [*models.NODES, *readback.NODES, *plans.NODES, *overrides.NODES, *disturbance.NODES]


async def comfy_entrypoint():
    return StandinExtension()
