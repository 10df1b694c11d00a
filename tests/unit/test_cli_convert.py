"""`dit-accel convert`: what it writes, what it says, and that it leaves nothing behind when it fails."""

import json
import os
import stat
import subprocess
import sys
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dit_accel.accel.cli.main import main
from dit_accel.accel.quant.formats.comfy_quant_writer import tensors_of
from dit_accel.accel.quant.formats.reading import read_quantised
from dit_accel.tests.support.comfy_quant_dialects import awq, make_awq, make_layer, same, tiles


@pytest.fixture
def source(tmp_path):
    """A tile-packed file, as comfy-quants writes it."""
    path = tmp_path / "tiles.safetensors"
    tensors = tiles("blocks.0.ffn.0", *make_layer()) | tiles("blocks.0.ffn.2", *make_layer(seed=1, unsigned=True))
    tensors |= awq("mod.1", *make_awq(), zero="weight_zero") | {"norm.weight": torch.ones(4)}
    metadata = {"quantization_config": "{}", "config": '{"dim": 4}'}
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata=metadata)
    return path


def test_same_model_in_natural_order(source, tmp_path, capsys):
    target = tmp_path / "out.safetensors"
    assert main(["convert", str(source), str(target)]) == 0
    model, metadata = read_quantised(target)
    assert same(model, read_quantised(source)[0])
    assert metadata["config"] == '{"dim": 4}'
    assert metadata["converted_from"] == "tiles.safetensors"
    assert metadata["pack"]
    assert "quantization_config" not in metadata
    with safe_open(target, framework="pt") as file:
        assert file.get_slice("blocks.0.ffn.2.weight").get_shape() == [256, 64]
        assert json.loads(file.get_tensor("blocks.0.ffn.2.comfy_quant").numpy().tobytes())["layout"] == "natural"
    out = capsys.readouterr().out
    assert "3 4-bit layers" in out
    assert "2 svdquant_w4a4" in out
    assert "1 awq_w4a16" in out
    assert f"{source.stat().st_size / 1e6:.2f} MB before, {target.stat().st_size / 1e6:.2f} MB after" in out
    assert "Only this pack" not in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.safetensors", "tiles.safetensors"]


def test_a_second_conversion_changes_no_tensor(source, tmp_path):
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    main(["convert", str(source), str(first)])
    main(["convert", str(first), str(second)])
    assert same(safetensors.torch.load_file(first), safetensors.torch.load_file(second))


def test_it_names_layers_that_only_this_pack_reads(tmp_path, capsys):
    weight, bias = make_layer()
    model = {"single.linear2.weight": replace(weight, unsigned_from=64), "single.linear2.bias": bias}
    tensors, metadata = tensors_of(model)
    save_file(tensors, tmp_path / "own.safetensors", metadata=metadata)
    assert main(["convert", str(tmp_path / "own.safetensors"), str(tmp_path / "out.safetensors")]) == 0
    out = capsys.readouterr().out
    assert "1 dit_accel_w4" in out
    assert out.endswith("no words:\n  single.linear2\n")


def test_others_may_read_the_result(source, tmp_path):
    (tmp_path / "plain").touch()
    main(["convert", str(source), str(tmp_path / "out.safetensors")])
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "out.safetensors")}
    assert len(modes) == 1


def fails(capsys, *arguments) -> str:
    assert main(["convert", *map(str, arguments)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_bad_sources_are_one_line(source, tmp_path, capsys):
    target = tmp_path / "out.safetensors"
    assert "found nothing at" in fails(capsys, tmp_path / "none.safetensors", target)
    (tmp_path / "text.safetensors").write_text("hello")
    assert "expected a safetensors file" in fails(capsys, tmp_path / "text.safetensors", target)
    save_file({"a.weight": torch.ones(2)}, tmp_path / "plain.safetensors")
    assert "no 4-bit layer" in fails(capsys, tmp_path / "plain.safetensors", target)
    eight = {"a.weight": torch.ones(2), "a.comfy_quant": torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)}
    save_file(eight, tmp_path / "eight.safetensors")
    assert "nothing to convert" in fails(capsys, tmp_path / "eight.safetensors", target)
    tensors = safetensors.torch.load_file(source)
    del tensors["mod.1.weight_scale"]
    save_file(tensors, tmp_path / "broken.safetensors")
    assert "broken.safetensors: mod.1.weight_scale: expected" in fails(capsys, tmp_path / "broken.safetensors", target)
    assert not target.exists()


def test_bad_targets_are_one_line(source, tmp_path, capsys):
    before = source.read_bytes()
    assert "another file than the source" in fails(capsys, source, source)
    link = tmp_path / "link.safetensors"
    os.link(source, link)
    assert "another file than the source" in fails(capsys, source, link)
    assert "found the folder" in fails(capsys, source, tmp_path)
    assert "cannot write" in fails(capsys, source, tmp_path / "none" / "out.safetensors")
    assert source.read_bytes() == before


def test_an_interrupt_leaves_everything_as_it_was(source, tmp_path, monkeypatch):
    target = tmp_path / "out.safetensors"
    target.write_text("what was there")

    def interrupted(tensors, path, metadata):
        path.write_bytes(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(safetensors.torch, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main(["convert", str(source), str(target)])
    assert target.read_text() == "what was there"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.safetensors", "tiles.safetensors"]


def test_a_full_disk_leaves_everything_as_it_was(source, tmp_path):
    target = tmp_path / "out.safetensors"
    target.write_text("what was there")
    code = (
        "import resource, sys\n"
        "from dit_accel.accel.cli.main import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", code, "convert", str(source), str(target)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1, result.stderr
    assert result.stderr.count("\n") == 1
    assert f"TARGET: cannot write {target}" in result.stderr
    assert target.read_text() == "what was there"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.safetensors", "tiles.safetensors"]
