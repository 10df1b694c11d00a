"""The doors for JSON and safetensors: what is too large, too deep or no file at all is refused before it costs
anything, by a message that says what it is."""

import json
import os
import re
import resource
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dit_accel.accel import files

JSON_REFUSED = {
    "nothing": (b"", "no JSON"),
    "half a text": (b'{"a": ', "no JSON"),
    "no text": (b"\xff\xfe\xfd", "no JSON"),
    "deep": (b"[" * 100_000, "brackets within brackets"),
    "deep and whole": (b"[" * 300 + b"]" * 300, "brackets within brackets, more than 200 deep"),
    "deep objects": (b'{"a":' * 900 + b"1" + b"}" * 900, "brackets within brackets"),
    "400 digits": (b"1" * 401, "a number of more than 308 digits"),
    "5000 digits": (b"-" + b"1" * 5000, "a number of more than 308 digits"),
    "a million lists": (b"[" + b"[]," * 1_000_000 + b"1]", "more than 500000 values"),
    "a million numbers": (b"[" + b"1," * 1_000_000 + b"1]", "more than 500000 values"),
    "8 MB of text": (b'"' + b"x" * files.JSON_LIMIT + b'"', "more than 8 MB of text"),
}


def elapsed(start: float) -> float:
    return time.process_time() - start


@pytest.mark.parametrize("case", JSON_REFUSED)
def test_what_is_no_json_is_refused_with_what_it_is(tmp_path, case):
    content, found = JSON_REFUSED[case]
    path = tmp_path / "a.json"
    path.write_bytes(content)
    start = time.process_time()
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}: expected rows, found {found}"):
        files.load_json(path, "rows")
    assert elapsed(start) < 1
    with pytest.raises(ValueError, match=f"^{found}"):
        files.parse_json(content)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_json_of_every_encoding_is_read(tmp_path, encoding):
    path = tmp_path / "a.json"
    content = {"ä": [1, -2.5, None, 10**307], "deep": json.loads("[" * 190 + "]" * 190)}
    path.write_text(json.dumps(content, ensure_ascii=False), encoding)
    assert files.load_json(path, "something") == content


def read_own(path):
    return files.read(path, "kind", 1)


def read_others(path):
    """As a reader that names the file."""
    try:
        return files.mapped(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def load_json(path):
    return files.load_json(path, "something")


DOORS = (load_json, read_own, read_others)


@pytest.mark.parametrize("door", DOORS)
def test_what_is_no_file_is_refused_by_name(tmp_path, door):
    folder, pipe, device = tmp_path / "x.safetensors", tmp_path / "y.safetensors", tmp_path / "z.safetensors"
    folder.mkdir()
    os.mkfifo(pipe)
    device.symlink_to("/dev/zero")
    for path, found in ((folder, "a folder"), (pipe, "a device"), (device, "a device")):
        with pytest.raises(ValueError, match=rf"{path}: expected .*, found {found}"):
            door(path)


@pytest.mark.parametrize("door", DOORS)
def test_a_file_that_may_not_be_read_is_refused_by_name(tmp_path, door, monkeypatch):
    path = tmp_path / "x.safetensors"
    path.touch()

    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ValueError, match=rf"{path}: expected .*, found one that cannot be read \(Permission denied\)"):
        door(path)


@pytest.mark.parametrize("door", DOORS)
def test_gigabytes_are_refused_unread(tmp_path, door):
    path = tmp_path / "x"
    with path.open("wb") as file:
        file.write((2**30).to_bytes(8, "little") + b"{")
        file.truncate(2**31)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ValueError, match=r"found (more than 8 MB|one with a header of 1024 MB, more than 32 MB)"):
        door(path)
    assert elapsed(start) < 0.5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10, "kilobytes"


def raw(path: Path, header: dict | bytes, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(*shape: int, start: int = 0, end: int = 4, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


SAFETENSORS_REFUSED = {
    "bytes behind": ({"a": entry(1)}, b"\0" * 11, "one with 7 bytes behind the last tensor"),
    "too short": ({"a": entry(1)}, b"\0", "a broken one (it ends 3 bytes early)"),
    "no header": (b"[1]", b"", "a broken one"),
    "deep header": (b"[" * 100_000, b"", "a broken one"),
    "other dtype": ({"a": entry(4, dtype="F6_E2M3", end=3)}, b"\0" * 3, "a broken one"),
    "negative size": ({"a": entry(-1)}, b"\0" * 4, "a broken one"),
    "sizes of no tensor": ({"a": entry(2**63, 0, end=0)}, b"", "a broken one"),
    "overlapping": ({"a": entry(1), "b": entry(1)}, b"\0" * 4, "a broken one"),
    "wrong metadata": ({"__metadata__": {"a": 1}}, b"", "a broken one"),
}


@pytest.mark.parametrize("case", SAFETENSORS_REFUSED)
def test_what_is_no_safetensors_file_is_refused_with_what_it_is(tmp_path, case):
    header, data, found = SAFETENSORS_REFUSED[case]
    path = raw(tmp_path / "x.safetensors", header, data)
    with pytest.raises(ValueError, match=f"^expected a safetensors file, found {re.escape(found)}"):
        files.mapped(path)
    with pytest.raises(ValueError, match=f"expected a file of the format kind, found {re.escape(found)}"):
        read_own(path)


def test_a_hundred_thousand_tensors_are_refused_within_a_second(tmp_path):
    names = {f"encoder.stages.1.op_list.{i}.norm.weight": entry(1, start=4 * i, end=4 * i + 4) for i in range(100_000)}
    path = raw(tmp_path / "x.safetensors", names, bytes(400_000))
    start = time.process_time()
    with pytest.raises(ValueError, match="found one of 100000 tensors, more than 50000"):
        files.mapped(path)
    assert elapsed(start) < 1


def test_a_header_that_looks_like_a_pickle_is_read(tmp_path):
    """0x80, a pickle's first byte, is the length of a header as well."""
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(1)}, path, metadata={"pad": "x" * 41})
    content = path.read_bytes()
    assert content[0] == 0x80
    tensors, metadata = files.mapped(path)
    assert torch.equal(tensors["a"], torch.ones(1)) and metadata["pad"] == "x" * 41
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="expected a safetensors file, found"):
        files.mapped(path)


def test_words_of_a_header_in_its_metadata_are_no_tensors(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(1)}, path, metadata={"text": '"data_offsets"' * 60_000})
    assert files.mapped(path)[0].keys() == load_file(path).keys()


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    for door in (read_own, files.mapped):
        with pytest.raises(FileNotFoundError, match="none"):
            door(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match=r"none\.json: expected something, found .*No such file"):
        load_json(tmp_path / "none.json")
