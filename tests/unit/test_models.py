"""The pack's own folder: names of files to write and to choose from."""

import os
from pathlib import Path

import pytest

from dit_accel.accel.comfy import folders


@pytest.fixture
def folder(comfy, tmp_path, monkeypatch) -> Path:
    """models/dit_accel, empty, before the folder of the bundled files."""
    import folder_paths

    own, bundled = tmp_path / "own", tmp_path / "bundled"
    for made in (own, bundled):
        made.mkdir()
    known = {folders.FOLDER: ([str(own), str(bundled)], {".json", ".safetensors"})}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", known)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return own


def write(path: Path, text: str = "{}") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_new_file_goes_to_the_first_folder_with_the_next_number(folder):
    assert folders.own_folder() == folder
    path, name = folders.new_file("profile", ".json")
    assert (path, name) == (folder / "profile_00001_.json", "profile_00001_.json")
    write(path)
    assert folders.new_file("profile", ".json")[1] == "profile_00002_.json"
    assert folders.new_file("profiles", ".json")[1] == "profiles_00001_.json"


def test_folders_in_the_prefix(folder):
    path, name = folders.new_file("wan/error 0.05", ".json")
    assert path == folder / "wan" / "error 0.05_00001_.json"
    assert name == os.path.join("wan", "error 0.05_00001_.json")
    assert path.parent.is_dir()
    write(path)
    assert folders.own_files(".json") == [name], "the name is the one that a loading node lists"


@pytest.mark.parametrize("prefix", ["", ".", "..", "a/..", "/", "./"])
def test_a_prefix_that_names_no_file_is_refused(folder, prefix):
    with pytest.raises(ValueError, match="filename_prefix: expected the start of a file name, found"):
        folders.new_file(prefix, ".json")


@pytest.mark.parametrize("prefix", ["../outside", "a/../../outside", "/outside"])
def test_nothing_is_written_outside_the_folder(folder, prefix):
    with pytest.raises(Exception, match="outside"):
        folders.new_file(prefix, ".json")


def test_files_are_listed_by_kind_and_measurements_of_cards_are_not(folder):
    for name in ("a.json", "deep/b.json", "c.safetensors", "gate/card.json", "deep/gate/d.json"):
        write(folder / name)
    write(folder.parent / "bundled" / "e.json")
    expected = {"a.json", os.path.join("deep", "b.json"), os.path.join("deep", "gate", "d.json"), "e.json"}
    assert set(folders.own_files(".json")) == expected
    assert folders.own_files(".safetensors") == ["c.safetensors"]
    assert folders.gate_files() == [folder / "gate" / "card.json"]


def test_a_file_that_is_written_anew_has_another_version(folder):
    path = write(folder / "a.json")
    before = folders.version_of("a.json")
    assert before == folders.version_of("a.json")
    write(path, "{ }")
    assert folders.version_of("a.json") != before
    assert folders.version_of("missing.json") is folders.version_of(None) is None
