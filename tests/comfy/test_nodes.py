"""The nodes' schemas against the tables behind them, and what all of them keep to."""

import asyncio
import inspect

import pytest

from dit_accel.accel.attention.budget import CUSTOM, PRESETS
from dit_accel.accel.attention.planners import PATTERNS


def options(node, name: str) -> list[str]:
    return next(entry for entry in node.define_schema().inputs if entry.id == name).options


def test_patterns_are_the_planners(comfy):
    from dit_accel.nodes.sparse_attention import DitAccelSparseAttention

    assert options(DitAccelSparseAttention, "pattern") == list(PATTERNS)


def test_presets_are_the_table(comfy):
    from dit_accel.nodes.attention_budget import DitAccelBudget

    assert set(options(DitAccelBudget, "preset")) == {*PRESETS, CUSTOM}


@pytest.fixture
def registered(comfy, monkeypatch):
    """All nodes, with the pack's folders known while the test lasts."""
    import folder_paths

    from dit_accel.nodes.extension import DiTAccelExtension

    known = {
        name: (list(paths), set(endings)) for name, (paths, endings) in folder_paths.folder_names_and_paths.items()
    }
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", known)
    extension = DiTAccelExtension()
    asyncio.run(extension.on_load())
    return asyncio.run(extension.get_node_list())


def test_what_may_be_left_out_has_the_schemas_default(registered):
    """The server passes nothing for an optional input that a graph leaves out."""
    optional = 0
    for node in registered:
        parameters = inspect.signature(node.execute).parameters
        for given in node.define_schema().inputs:
            if given.optional:
                optional += 1
                assert parameters[given.id].default == getattr(given, "default", None), (node.__name__, given.id)
    assert optional >= 10


def test_optional_inputs_are_last_so_that_no_widget_changes_its_place(registered):
    """ComfyUI puts required inputs before optional ones, and saved workflows hold the values of widgets by place."""
    for node in registered:
        optional = [given.optional for given in node.define_schema().inputs]
        assert optional == sorted(optional), node.__name__


@pytest.mark.parametrize("samples", [{}, {"samples": None}, {"noise_mask": 1}, None], ids=repr)
def test_a_latent_without_samples_is_refused_by_name(tiny, case, samples):
    from dit_accel.nodes.attention_profile import DitAccelProfile
    from dit_accel.nodes.report import DitAccelReport

    with pytest.raises(ValueError, match="samples: expected a latent"):
        DitAccelReport.execute(case.model(), samples)
    with pytest.raises(ValueError, match="samples: expected a latent"):
        DitAccelProfile.execute(case.model(), samples, "error", 0.05)


def test_a_loader_that_found_no_model_is_named(comfy):
    """A checkpoint of a VAE alone gives None."""
    from dit_accel.nodes.attention_profile import DitAccelRecord
    from dit_accel.nodes.sparse_attention import DitAccelSparseAttention

    for use in (
        lambda: DitAccelSparseAttention.execute(None, "svg2", "auto", "auto"),
        lambda: DitAccelRecord.execute(None, "attention"),
    ):
        with pytest.raises(ValueError, match="model: expected a diffusion model, found NoneType"):
            use()
