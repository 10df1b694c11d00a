"""Stand-in nodes for the server tests: what stands around the sampler, and instruments to look inside."""

from comfy_api.latest import ComfyExtension

from dit_accel.tests.server.standins import (
    disturbance,
    encoders,
    exact,
    faults,
    lightricks,
    minimax,
    models,
    overrides,
    plans,
    readback,
)


class StandinExtension(ComfyExtension):
    async def get_node_list(self):
        around = [*models.NODES, *encoders.NODES, *lightricks.NODES, *minimax.NODES]
        return [
            *around,
            *readback.NODES,
            *plans.NODES,
            *overrides.NODES,
            *disturbance.NODES,
            *exact.NODES,
            *faults.NODES,
        ]


async def comfy_entrypoint():
    return StandinExtension()
