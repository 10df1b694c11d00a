"""Which DC-AE a file holds: told by shapes where they differ, by hints where they do not, else asked."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from dit_accel.accel.dcae.checkpoint import read
from dit_accel.accel.dcae.config import BATCH, CONFIGS, EVIT, RELU, SILU, UNSHUFFLE, Config, Stage
from dit_accel.accel.dcae.detect import detect
from dit_accel.accel.dcae.hints import Hints, gather
from dit_accel.accel.dcae.keys import DIFFUSERS, FORMATS, MIT, from_ours, place, table, to_ours
from dit_accel.tests.support.dcae_files import MIT_SHAPES, TINY, diffusers_settings, golden, in_file

ALIKE = [name for name in CONFIGS if "-in-" in name or "-mix-" in name]
FORM_IDS = [form.name for form in FORMATS]


def named(text):
    return Hints(texts=(("file name", text),))


@pytest.mark.parametrize("name", MIT_SHAPES)
def test_mits_own_shape_tables(name):
    assert detect(MIT_SHAPES[name], named(name)) is CONFIGS[name.removeprefix("dc-ae-")]


@pytest.mark.parametrize("form", FORMATS, ids=FORM_IDS)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_published_autoencoder_in_both_formats(name, form):
    shapes = in_file(CONFIGS[name], form)
    assert detect(shapes, Hints(variant=name)) == CONFIGS[name]
    assert detect(shapes, named(f"dc-ae-{name}.safetensors")) == CONFIGS[name]
    for prefix in ("vae.", "first_stage_model.", "model.", "autoencoder.", "model.vae."):
        packed = {prefix + key: shape for key, shape in shapes.items()} | {"other.weight": (3, 3)}
        assert detect(packed, named(name)) == CONFIGS[name]


@pytest.mark.parametrize("form", FORMATS, ids=FORM_IDS)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_name_has_a_place(name, form):
    """The way back from a name finds side, stage, part and tensor."""
    for ours, theirs in table(CONFIGS[name], form).items():
        for found in (place(key, form) for key in theirs):
            if ".stages." not in ours:
                assert found is None
            elif found.part == "resampling":
                way = "down" if found.side == "encoder" else "up"
                assert ours == f"{found.side}.stages.{found.stage}.{way}.conv.{found.tensor}"
            else:
                assert ours.startswith(f"{found.side}.stages.{found.stage}.blocks.")
                assert ours.split(".", 5)[5] == f"{found.part}.{found.tensor}"


@pytest.mark.parametrize("name", ALIKE)
def test_in_and_mix_are_never_guessed(name):
    size = name.split("-")[0]
    for text in (
        "",
        "model.safetensors",
        f"{size}.safetensors",
        "made-in-china.safetensors",
        f"{size}-main-1.0",
        f"{size}-in-1.0-256px",
    ):
        with pytest.raises(ValueError, match=rf"{size}-in-1.0 or {size}-mix-1.0.*found none.*choose the variant"):
            detect(in_file(CONFIGS[name], MIT), named(text))
    other = "f32c32" if size != "f32c32" else "f64c128"
    with pytest.raises(ValueError, match="choose the variant"):
        detect(in_file(CONFIGS[name], MIT), named(f"dc-ae-{other}-in-1.0"))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("dc-ae-f32c32-in-1.0", "in"),
        ("DC-AE_F32C32_MIX.safetensors", "mix"),
        ("dcae-in.pth", "in"),
        ("dc_ae mix.safetensors", "mix"),
        ("mit-han-lab/dc-ae-f32c32-mix-1.0-diffusers", "mix"),
    ],
)
def test_names_tell_in_from_mix(text, kind):
    assert detect(in_file(CONFIGS["f32c32-in-1.0"], MIT), named(text)).name == f"f32c32-{kind}-1.0"


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("dc-ae-f32c32-sana-1.1.safetensors", "1.1"),
        ("sana_dcae_1_1.safetensors", "1.1"),
        ("dc-ae-f32c32-sana-1.0", "1.0"),
        ("vae.safetensors", "1.0"),
        ("dc-ae-2.1.1.safetensors", "1.0"),
    ],
)
def test_sana_is_1_0_unless_its_name_says_1_1(text, version):
    assert detect(in_file(CONFIGS["f32c32-sana-1.0"], MIT), named(text)).name == f"f32c32-sana-{version}"


def test_hints_that_disagree_are_no_hint():
    shapes = in_file(CONFIGS["f32c32-in-1.0"], DIFFUSERS)
    hints = Hints(texts=(("config.json", "dc-ae-f32c32-in-1.0"), ("file name", "dcae-mix")))
    with pytest.raises(ValueError, match=r"config\.json: f32c32-in-1\.0; file name: f32c32-mix-1\.0: choose"):
        detect(shapes, hints)
    assert detect(shapes, replace(hints, variant="f32c32-mix-1.0")) is CONFIGS["f32c32-mix-1.0"]
    folder = Hints(texts=(("file name", "dcae-mix"), ("folder", "dcae-in")))
    assert detect(shapes, folder) is CONFIGS["f32c32-mix-1.0"]


def test_a_variant_that_contradicts_the_shapes_is_refused():
    shapes = in_file(CONFIGS["f32c32-in-1.0"], MIT)
    with pytest.raises(ValueError, match=r"tensors of f64c128-mix-1\.0.*those of f32c32-in-1\.0 or f32c32-mix-1\.0"):
        detect(shapes, Hints(variant="f64c128-mix-1.0"))
    with pytest.raises(ValueError, match=r"tensors of lite-f32c32.*those of f32c32-sana-1\.0 or f32c32-sana-1\.1"):
        detect(in_file(CONFIGS["f32c32-sana-1.0"], DIFFUSERS), Hints(variant="lite-f32c32"))
    with pytest.raises(ValueError, match=r"tensors of lite-f32c32.*an unpublished autoencoder \(f8c8\)"):
        detect({key: value.shape for key, value in load_file(golden("sana")).items()}, Hints(variant="lite-f32c32"))
    with pytest.raises(ValueError, match=r"variant: expected auto or one of f32c32-in-1\.0.*found f32c32-out"):
        detect(shapes, Hints(variant="f32c32-out"))


def settings(config, **changes):
    return Hints(settings={"_class_name": "AutoencoderDC", **diffusers_settings(config), **changes})


@pytest.mark.parametrize("name", CONFIGS)
def test_diffusers_settings_tell_what_tensors_do_not(name):
    config = CONFIGS[name]
    found = detect(in_file(config, DIFFUSERS), settings(config, scaling_factor=config.scale or 0.3))
    first = "f32c32-sana-1.0" if name == "f32c32-sana-1.1" else name
    assert found == replace(CONFIGS[first], scale=config.scale or 0.3)


def test_settings_make_an_unknown_autoencoder():
    known = CONFIGS["f32c32-in-1.0"]
    shapes = in_file(known, DIFFUSERS)
    tuned = detect(shapes, settings(known, scaling_factor=0.7))
    assert tuned == replace(known, name="f32c32", scale=0.7, encoder=tuned.encoder, decoder=tuned.decoder)
    assert detect(shapes, replace(settings(known, scaling_factor=0.7), variant=known.name)) is known
    lite = CONFIGS["lite-f32c32"]
    other = detect(in_file(lite, DIFFUSERS), settings(lite, decoder_conv_act_fn="relu", decoder_act_fns="relu"))
    assert (other.name, other.final_act, other.decoder[1].act) == ("f32c32", RELU, RELU)


def test_settings_of_another_file_do_not_count():
    """All files of a folder have one config.json beside them."""
    hints = settings(CONFIGS["f64c128-in-1.0"])
    with pytest.raises(ValueError, match="choose the variant"):
        detect(in_file(CONFIGS["f32c32-in-1.0"], DIFFUSERS), hints)
    assert detect(in_file(CONFIGS["f32c128-1.5"], DIFFUSERS), hints) == CONFIGS["f32c128-1.5"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scaling_factor": "0.3"}, "scaling_factor: expected a float or int, found '0.3'"),
        ({"encoder_out_shortcut": "no"}, "encoder_out_shortcut: expected a bool"),
        ({"decoder_act_fns": ["relu"]}, "decoder_act_fns: expected relu or silu for each stage"),
        ({"decoder_act_fns": [["relu"]] * 6}, "decoder_act_fns: expected relu or silu for each stage"),
        ({"decoder_act_fns": "gelu"}, "decoder_act_fns: expected relu or silu for each stage"),
        ({"decoder_conv_act_fn": "gelu"}, "decoder_conv_act_fn: expected relu or silu, found gelu"),
    ],
)
def test_bad_settings_are_named(change, words):
    known = CONFIGS["f32c32-in-1.0"]
    with pytest.raises(ValueError, match=f"config.json: {words}"):
        detect(in_file(known, DIFFUSERS), settings(known, **change))


def test_hints_of_a_file(tmp_path):
    folder = tmp_path / "dc-ae-f32c32-mix-1.0"
    folder.mkdir()
    path = folder / "model.safetensors"
    config = folder / "config.json"
    config.write_text(json.dumps({"model_name": "dc-ae-f32c32-in-1.0"}))
    found = gather(path, {"modelspec.title": "DC-AE mix", "config": "not JSON"}, "auto")
    assert dict(found.texts) == {
        "config.json": "dc-ae-f32c32-in-1.0",
        "metadata": "DC-AE mix",
        "file name": "model.safetensors",
        "folder": "dc-ae-f32c32-mix-1.0",
    }
    config.write_text(json.dumps({"_class_name": "AutoencoderDC", "scaling_factor": 0.5}))
    assert gather(path, {}).settings["scaling_factor"] == 0.5
    config.write_text(json.dumps({"_class_name": "AutoencoderKL", "scaling_factor": 0.5}))
    assert gather(path, {}).settings == {}
    for text in ("", "[1]", "{", "[" * 100_000):
        config.write_text(text)
        assert gather(path, {}).settings == {}
    inside = json.dumps({"_class_name": "AutoencoderDC", "scaling_factor": 0.25})
    assert gather(path, {"config": inside}).settings["scaling_factor"] == 0.25


def test_a_file_with_its_settings_beside_it(tmp_path):
    config = replace(read(golden("mix"))[0], scale=0.25)
    tensors = to_ours(load_file(golden("mix")), config, MIT)
    save_file(from_ours(tensors, config, DIFFUSERS), tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(settings(config).settings))
    assert read(tmp_path / "diffusion_pytorch_model.safetensors")[0] == config


@pytest.mark.parametrize("which", TINY)
def test_structure_of_tiny_autoencoders(which):
    """The golden files' metadata say what they were made with."""
    found = read(golden(which))[0]
    evit = Stage(32, 1, EVIT, (5,) if which == "sana" else ())
    if which == "sana":
        encoder = (Stage(16, 1), Stage(16, 1), replace(evit, depth=2), evit)
        decoder = (Stage(16, 2), Stage(16, 1), evit, evit)
        expected = Config("f8c8", 8, encoder, decoder, "strided", "interpolate")
    else:
        encoder = (Stage(16, 0), Stage(16, 2), evit, evit)
        decoder = (Stage(16, 0), Stage(16, 1, norm=BATCH, act=RELU), replace(evit, depth=2), evit)
        expected = Config("f8c8", 8, encoder, decoder)
    assert found == expected


@pytest.mark.parametrize("form", FORMATS, ids=FORM_IDS)
def test_what_keys_tell_of_unknown_sizes(form):
    """Heads of another size, several scales, no shortcuts, strided first convolutions."""
    wide = Stage(16, 2, EVIT, (3, 5))
    some = Config("f4c4", 4, (Stage(8, 1), Stage(8, 1), wide), (Stage(8, 1), Stage(8, 2), wide), head_dim=8)
    res = (Stage(8, 0), Stage(8, 1), Stage(16, 2))
    plain = Config("f4c4", 4, res, res, end_shortcuts=False, final_act=SILU)
    cases = (some, plain, replace(plain, down="strided", up="interpolate"), replace(some, down="strided"))
    for config in cases:
        assert detect(in_file(config, form)) == config
    if form is MIT:
        assert detect(in_file(replace(plain, end_shortcuts=True), form)).end_shortcuts
    assert some.down == UNSHUFFLE


def stub(**shapes):
    return {name.replace("__", "."): shape for name, shape in shapes.items()}


def test_dcaes_of_video_and_sound_are_named():
    video = {key: (*shape, 3) if len(shape) == 4 else shape for key, shape in MIT_SHAPES["dc-ae-f32c32-in-1.0"].items()}
    with pytest.raises(ValueError, match=r"found one of video.*not supported yet"):
        detect(video)
    with pytest.raises(ValueError, match="stereo sound"):
        detect(in_file(CONFIGS["f32c32-in-1.0"], DIFFUSERS) | stub(encoder__conv_in__conv__weight=(64, 2, 3, 3)))
    with pytest.raises(ValueError, match="3 channels, found one with 4"):
        detect(in_file(CONFIGS["f32c32-in-1.0"], MIT) | stub(encoder__project_in__conv__conv__weight=(64, 4, 3, 3)))


def test_other_files_are_refused():
    with pytest.raises(ValueError, match="image autoencoder, found none"):
        detect({})
    with pytest.raises(ValueError, match=r"found 2 others, such as a\.weight"):
        detect({"a.weight": (1,), "b.weight": (1,)})
    diffusers_kl = stub(decoder__conv_in__weight=(512, 16, 3, 3), decoder__up_blocks__0__resnets__0__conv1__weight=(1,))
    with pytest.raises(ValueError, match=r"those of Stable Diffusion 3, FLUX\.1"):
        detect(diffusers_kl)


@pytest.mark.parametrize("form", FORMATS, ids=FORM_IDS)
def test_half_an_autoencoder_is_refused(form):
    shapes = in_file(CONFIGS["f32c32-sana-1.0"], form)
    for start, words in (
        ("encoder.", "expected stages in the encoder"),
        ("decoder.", "expected stages in the decoder"),
        (form.ends["decoder.conv_in"][0], "expected a tensor decoder"),
        (f"encoder.{form.stages['encoder']}.5.", "as many stages in the decoder as in the encoder, 5, found 6"),
        (f"encoder.{form.stages['encoder']}.3.", "expected blocks in stage 3 of the encoder"),
    ):
        with pytest.raises(ValueError, match=words):
            detect({key: shape for key, shape in shapes.items() if not key.startswith(start)})


@pytest.mark.parametrize("off", [-1, 1])
def test_one_wrong_shape_does_not_hide_which_it_is(off):
    shapes = MIT_SHAPES["dc-ae-f32c32-sana-1.0"]
    for name in (
        "encoder.stages.0.op_list.0.main.conv1.conv.bias",
        "encoder.stages.3.op_list.0.local_module.main.point_conv.norm.weight",
        "encoder.stages.0.op_list.2.main.conv.weight",
        "decoder.stages.0.op_list.0.main.conv.conv.weight",
    ):
        assert detect(shapes | {name: [size + off for size in shapes[name]]}) is CONFIGS["f32c32-sana-1.0"]


def test_shapes_are_all_it_needs():
    """Also on tensors without memory."""
    shapes = {
        key: torch.empty(shape, device="meta").shape for key, shape in MIT_SHAPES["dc-ae-f32c32-sana-1.0"].items()
    }
    assert detect(shapes) is CONFIGS["f32c32-sana-1.0"]
