"""A machine without Triton and without a GPU: every node is there all the same."""

from dit_accel.accel.headless.server import Server
from dit_accel.tests.server.conftest import ARGUMENTS, ENVIRONMENT, REPOSITORY


def test_every_node_registers(comfyui, tmp_path):
    blocked = tmp_path / "blocked" / "triton"
    blocked.mkdir(parents=True)
    (blocked / "__init__.py").write_text('raise ModuleNotFoundError("No module named triton", name="triton")\n')
    environment = {**ENVIRONMENT, "PYTHONPATH": str(blocked.parent)}
    with Server(comfyui, tmp_path / "base", [REPOSITORY], ARGUMENTS, environment) as server:
        assert {name for name in server.request("/object_info") if name.startswith("DitAccel")} == {
            "DitAccelSparseAttention",
            "DitAccelBudget",
            "DitAccelSaveConditioning",
            "DitAccelLoadConditioning",
            "DitAccelLoadSVDQuant",
            "DitAccelLoadDCAE",
            "DitAccelDCAEDecode",
            "DitAccelDCAEEncode",
            "DitAccelRecord",
            "DitAccelProfile",
            "DitAccelSaveProfile",
            "DitAccelLoadProfile",
            "DitAccelReport",
            "DitAccelCompareVideos",
        }
        assert "IMPORT FAILED" not in server.log_since(0)
