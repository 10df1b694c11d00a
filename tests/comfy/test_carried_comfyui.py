"""What tests/bench/README.md says to carry to a machine without network is enough for a forward and a capture."""

import os
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "bench" / "README.md"
# Of ComfyUI's requirements, those that the README does not name.
MISSING = ["aiohttp", "yarl", "alembic", "sqlalchemy", "av", "simpleeval", "blake3", "kornia", "spandrel", "pydantic"]
CODE = f"""
import sys
sys.modules.update(dict.fromkeys({[*MISSING, "torchaudio"]}))  # an import of these raises
from dit_accel.tests.bench.__main__ import main
assert main(["forward", "--layers", "1", "--grid", "4x6x8", "--repeats", "1"]) == 0
assert main(["capture", "--clip", "drawn", "--grid", "1", "2", "3", "--output", "c.safetensors"]) == 1
del sys.modules["torchaudio"]
assert main(["capture", "--clip", "drawn", "--grid", "1", "2", "3", "--output", "c.safetensors"]) == 0
import comfy
print(*comfy.__path__)
"""


def test_it_is_enough(comfyui, tmp_path):
    commands = re.findall(r"^    ((?:mkdir -p|tar) .*)$", README.read_text("utf-8"), re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        subprocess.run(re.sub(r"\bCOMFYUI\b", str(comfyui), command), shell=True, check=True, cwd=tmp_path)
    carried = tmp_path / "CARRIED" / "comfyui"
    assert sum(file.stat().st_size for file in carried.rglob("*")) < 10e6
    environment = {**os.environ, "COMFYUI_PATH": str(carried), "TRITON_INTERPRET": "0"}
    ran = subprocess.run(
        [sys.executable, "-c", CODE], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.splitlines()[-1] == str(carried / "comfy")
    assert "a package that ComfyUI requires is missing (import of torchaudio halted" in ran.stderr
