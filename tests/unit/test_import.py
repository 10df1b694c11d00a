"""What it costs, and what it touches, to import the pack."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# In the order of the list; a test of the server compares it with what is registered.
NODES = tuple(json.loads((ROOT / "tests" / "server" / "object_info.json").read_text("utf-8")))

# Loads the pack as ComfyUI does: by path, under a module name that is that path.
LOAD = """
import asyncio, importlib.util, sys, time
def load(folder):
    name = folder.replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, folder + "/__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    extension = asyncio.run(module.comfy_entrypoint())
    asyncio.run(extension.on_load())
    return extension
"""


def run(code: str, *, comfyui: Path | None = None, path: Path = ROOT) -> str:
    prepare = f"import sys; sys.argv = ['x', '--cpu']; sys.path.insert(0, {str(comfyui)!r})\n" if comfyui else ""
    if comfyui:
        prepare += "import comfy.options; comfy.options.enable_args_parsing()\nimport torch, comfy_api.latest\n"
    code = f"{prepare}{LOAD}\nfolder = {str(path)!r}\n{code}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip().splitlines()[-1]


def test_import_is_quick(comfyui):
    """Under 50 ms of computing on top of what ComfyUI has loaded anyway; the best of three, for a busy machine."""
    code = "t = time.process_time(); load(folder); print(time.process_time() - t)"
    assert min(float(run(code, comfyui=comfyui)) for _ in range(3)) < 0.05


def test_import_touches_neither_triton_nor_cuda(comfyui):
    code = """
for name in [n for n in sys.modules if n == "triton" or n.startswith("triton.")]:
    del sys.modules[name]
sys.modules["triton"] = None  # an import of it would raise
import torch
torch.cuda._lazy_init = lambda *_: sys.exit("CUDA was initialised")
extension = load(folder)
print(len(asyncio.run(extension.get_node_list())), torch.cuda.is_initialized())
"""
    assert run(code, comfyui=comfyui) == f"{len(NODES)} False"


def test_nodes_register_from_a_path_with_spaces(comfyui, tmp_path):
    folder = tmp_path / "my custom nodes" / "dit-accel v0.1"
    folder.parent.mkdir()
    folder.symlink_to(ROOT)
    code = "print(*[n.define_schema().node_id for n in asyncio.run(load(folder).get_node_list())])"
    assert run(code, comfyui=comfyui, path=folder) == " ".join(NODES)


def test_loaded_by_path_and_by_name_in_one_process(comfyui):
    """The custom operators exist once; both copies compute."""
    code = """
load(folder)
import importlib, torch
import dit_accel.accel.comfy.sparse.patch
other = importlib.import_module(folder.replace(".", "_x_") + ".kernels.kmeans")
import dit_accel.kernels.kmeans as ours
assert other is not ours
x = torch.randn(1, 1, 50, 64)
labels = [m.assign(x, x[:, :, :4], backend="reference") for m in (ours, other)]
print(torch.equal(*labels))
"""
    assert run(code, comfyui=comfyui) == "True"


def test_importable_without_comfyui():
    assert run("import dit_accel, dit_accel.accel.attention.planners; print('comfy' in sys.modules)") == "False"


def test_our_nodes_never_shadow_comfyuis(comfy):
    assert str(ROOT) not in sys.path
    import nodes

    assert Path(nodes.__file__) == comfy / "nodes.py"


@pytest.mark.parametrize("forbidden", ["exec(", "eval(", "os.system", "subprocess"])
def test_registry_rules(forbidden):
    """The registry refuses packs that run code or commands from their nodes; the server driver is not a node."""
    allowed = {ROOT / "accel" / "headless" / "server.py"}
    for folder in ("nodes", "kernels", "accel/attention", "accel/comfy", "accel/headless"):
        for file in (ROOT / folder).rglob("*.py"):
            if file not in allowed:
                assert forbidden not in file.read_text("utf-8"), file
