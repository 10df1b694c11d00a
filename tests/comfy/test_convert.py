"""`dit-accel convert` on whole nunchaku checkpoints: the file that it writes reads as the same model."""

import pytest
from safetensors.torch import save_file

from dit_accel.accel.cli.main import main
from dit_accel.accel.quant.formats.reading import read_quantised
from dit_accel.accel.quant.weight4 import E2M1, INT4, Weight4
from dit_accel.tests.support.comfy_quant_dialects import same


@pytest.mark.parametrize("grid", [INT4, E2M1])
@pytest.mark.parametrize("name", ["flux", "flux padded", "qwen image", "z image"])
def test_a_nunchaku_file_reads_the_same_after_conversion(comfy, name, grid, tmp_path, capsys):
    from dit_accel.tests.support.nunchaku_checkpoints import checkpoint

    made = checkpoint(name, grid)
    source, target = tmp_path / "source.safetensors", tmp_path / "target.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in made.tensors.items()}, source, metadata=made.metadata)
    assert main(["convert", str(source), str(target)]) == 0
    found, metadata = read_quantised(target)
    expected, before = read_quantised(source)
    assert same(found, expected)
    assert metadata.get("config") == before.get("config")
    layers = [key.removesuffix(".weight") for key, value in expected.items() if isinstance(value, Weight4)]
    out = capsys.readouterr().out
    assert f"{len(layers)} 4-bit layers" in out
    # NVFP4 has no word in the shared formats; INT4 lacks one only for FLUX's joined signed and unsigned inputs.
    own = [layer for layer in layers if f"\n  {layer}\n" in out]
    four = [layer for layer in layers if expected[f"{layer}.weight"].zero is None]
    if grid == E2M1:
        assert own == four
    else:
        assert own == [layer for layer in four if layer.endswith("linear2")]
