"""The pack's own folder: names of files to write and to choose from."""

import os
from pathlib import Path

import pytest

from dit_accel.accel.comfy import folders
from dit_accel.accel.writing import replacing


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


@pytest.mark.parametrize("prefix", ["../outside", "a/../../outside", "/outside", "../own/gate/x", "../own/x"])
def test_nothing_is_written_outside_the_folder(folder, prefix):
    with pytest.raises(ValueError, match=r"^filename_prefix: .*found"):
        folders.new_file(prefix, ".json")
    assert set(folder.parent.rglob("*")) == {folder, folder.parent / "bundled"}


def test_a_link_out_of_the_folder_is_refused(folder):
    (folder / "link").symlink_to(folder.parent / "bundled")
    with pytest.raises(ValueError, match=r"filename_prefix: expected a folder .*found 'link/x'"):
        folders.new_file("link/x", ".json")


def test_a_file_in_the_place_of_a_folder_is_refused(folder):
    write(folder / "taken")
    with pytest.raises(ValueError, match=r"filename_prefix: expected a folder .*found 'taken/x'"):
        folders.new_file("taken/x", ".json")


REFUSED = {
    "NUL": "a\0b",
    "a control character": "a\nb",
    "too long": "x" * 240,
    "too many bytes": "世" * 80,
    "too many folders": "a/" * 3000 + "b",
    "half a character": "\ud800",
    "a byte that is none": "\udc80",
    "a device": "CON",
    "a device with a dot": "a/aux.old",
    "a device as a folder": "lpt1/a",
    "a device with a superscript": "COM\u00b2/a",
    "a device behind a space": "nul /a",
    "a stream": "a:b",
    "a drive": "C:/a",
    "characters of no file": 'what?/is "this"',
    "a folder that ends in a dot": "a./b",
    "a folder that is not listed": ".git/a",
    "likewise in capitals": ".GIT/a",
    "the folder of the gate": "gate/a",
    "likewise as a name": "GATE/",
    "a way around to it": "a/../gate/b",
}


@pytest.mark.parametrize("prefix", REFUSED.values(), ids=REFUSED)
def test_a_prefix_of_no_possible_file_is_refused_by_name(folder, prefix):
    with pytest.raises(ValueError, match=r"^filename_prefix: expected .*, found .{1,200}$"):
        folders.new_file(prefix, ".json")
    assert not list(folder.iterdir())


TAKEN = [
    "x" * 200,
    "\u4e16" * 66,
    "a b",
    "a.b",
    ".hidden",
    "a/b/c",
    "console",
    "a/Gate/b",
    "%year%/a",
    "-",
    "ä",
    "a\\b",
]


@pytest.mark.parametrize("prefix", TAKEN)
@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_any_other_prefix_gives_a_file_that_is_listed_under_its_name(folder, prefix, suffix):
    import folder_paths

    path, name = folders.new_file(prefix, suffix)
    with replacing(path) as partial:
        partial.write_text("{}")
    assert folders.own_files(suffix) == [name]
    assert Path(folder_paths.get_full_path(folders.FOLDER, name)).samefile(path)


def test_files_are_listed_by_kind_and_measurements_of_cards_are_not(folder):
    for name in ("a.json", "deep/b.json", "c.safetensors", "gate/card.json", "deep/gate/d.json", "Gate/old.json"):
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
