"""Every reader on files that are broken: it raises its one error, which names the file, what was expected and what was
found, within a second."""

import json
import os
import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dit_accel.tests.support.mutation import bytes_mutant, json_mutant, safetensors_mutant
from dit_accel.tests.support.readers import READERS

SEED = 20
# Files for each reader, 10,000 in all: fewer where one takes longer.
COUNTS = {
    "profile": 1800,
    "gate": 1200,
    "preview factors": 1000,
    "bench rows": 1200,
    "captures": 1200,
    "conditioning": 1000,
    "nunchaku": 600,
    "nunchaku's settings": 300,
    "comfy_quant": 600,
    "DC-AE": 600,
    "DC-AE's settings": 300,
    "DC-AE in a pickle": 200,
}
# Settings beside a file are other people's: what is no JSON at all is left aside.
JSON = [name for name, reader in READERS.items() if reader.name.endswith(".json")]
OWN_JSON = [name for name in JSON if READERS[name].name == "a.json"]
SAFETENSORS = [name for name, reader in READERS.items() if reader.name.endswith(".safetensors")]


def outcome(name: str, path: Path) -> tuple[str, bool]:
    """What is wrong with how the reader takes the file, empty where nothing is, and whether it refuses it."""
    reader = READERS[name]
    start, problem, refused = time.process_time(), "", False
    try:
        reader.read(path)
    except reader.error as error:
        text, refused = str(error), True
        missing = [word for word in (str(path.parent), "expected", "found") if word not in text]
        problem = f"its message lacks {missing}: {text[:300]}" if missing else ""
    except BaseException as error:
        problem = f"{type(error).__name__}: {str(error)[:300]}"
    seconds = time.process_time() - start
    return problem or (f"it took {seconds:.1f} s" if seconds > 1 else ""), refused


def assert_refused(name: str, path: Path) -> None:
    problem, refused = outcome(name, path)
    assert not problem and refused, problem or "it was read"


@pytest.fixture
def written(tmp_path, request):
    """The path of a good file for the reader that the test is about."""
    name = request.getfixturevalue("name")
    path = tmp_path / READERS[name].name
    READERS[name].write(path)
    return path


@pytest.mark.parametrize("name", READERS)
def test_the_good_file_is_read(written, name):
    assert outcome(name, written) == ("", False)


BROKEN = {
    "nothing": b"",
    "no text": b"\xff\xfe\xfa",
    "half a text": b'{"format": ',
    "another text": b"'format'",
    "deep": b"[" * 100_000,
    "deep and whole": b'{"a":' * 990 + b"1" + b"}" * 990,
    "digits": b"9" * 5000,
    "nothing said": b"null",
    "a text": b'"x"',
    "a number": b"NaN",
    "a list": b"[[]]",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("name", [*OWN_JSON, *SAFETENSORS, "DC-AE in a pickle"])
def test_other_bytes_are_refused(written, name, content):
    written.write_bytes(content)
    assert_refused(name, written)


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "link to nothing"])
@pytest.mark.parametrize("name", [*OWN_JSON, *SAFETENSORS, "DC-AE in a pickle"])
def test_what_is_no_file_is_refused(written, name, kind):
    written.unlink()
    if kind == "folder":
        written.mkdir()
    elif kind == "pipe":
        os.mkfifo(written)
    elif kind == "device":
        written.symlink_to("/dev/zero")
    else:
        written.symlink_to("/nothing/here")
    if kind == "link to nothing" and name not in OWN_JSON:
        with pytest.raises(FileNotFoundError):
            READERS[name].read(written)
    else:
        assert_refused(name, written)


# What stands in the place of something else.
WRONG = ["null", "true", "-1", '"x"', "[]", "{}", '[["x"]]', "NaN", "1e999", "9" * 400, '"\\ud800"']
WRONG.append("[" * 300 + "]" * 300)


def some(name: str, rows: list) -> list:
    """A share of the rows that the fast tier has time for."""
    return rows[:: 1 + len(rows) * 15 // COUNTS[name]]


def places(content, way=()) -> Iterator[tuple]:
    yield way
    for key in content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ():
        yield from places(content[key], (*way, key))


def replaced(content, way: tuple, text: str) -> str:
    """The JSON text of `content` with `text` in one place."""
    if not way:
        return text
    content = deepcopy(content)
    node = content
    for key in way[:-1]:
        node = node[key]
    node[way[-1]] = "the place"
    return json.dumps(content).replace('"the place"', text)


@pytest.mark.parametrize("name", JSON)
def test_every_value_may_be_wrong(written, name):
    """One after another: it is refused or read, and nothing else."""
    content, taken = json.loads(written.read_text()), 0
    tried = some(name, [(way, text) for text in WRONG for way in places(content)])
    for way, text in tried:
        written.write_text(replaced(content, way, text))
        problem, refused = outcome(name, written)
        assert not problem, (way, text[:20], problem)
        taken += not refused
    assert taken < len(tried)


@pytest.mark.parametrize("name", SAFETENSORS)
def test_every_text_in_the_metadata_may_be_wrong(written, name):
    with safe_open(written, "pt") as file:
        metadata = file.metadata()
    tensors, tried = load_file(written), []
    for field, text in metadata.items():
        tried += [(field, wrong) for wrong in ("", "x", *WRONG)]
        if text.startswith(("{", "[")):
            content = json.loads(text)
            tried += [(field, replaced(content, way, '[{"a": "x"}]')) for way in places(content)]
    for field, wrong in some(name, tried):
        save_file(tensors, written, metadata={**metadata, field: wrong})
        assert outcome(name, written)[0] == "", (field, wrong[:80])


TENSORS = {
    "gone": None,
    "a number": torch.tensor(1.5),
    "empty": torch.zeros(0, 4),
    "of no shape of its": torch.zeros(2, 3, 5, 7),
    "of 8 bits": torch.zeros(3, dtype=torch.uint8),
    "NaN": torch.full((4, 4), float("nan")),
}


@pytest.mark.parametrize("wrong", TENSORS)
@pytest.mark.parametrize("name", SAFETENSORS)
def test_a_tensor_may_be_another(written, name, wrong):
    """One of each name that differs in more than its numbers."""
    with safe_open(written, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(written)
    kinds = {"".join(c for c in tensor if not c.isdigit()): tensor for tensor in tensors}
    for tensor in [*kinds.values()][:: 1 + len(kinds) // 8]:
        others = {other: x for other, x in tensors.items() if other != tensor}
        if TENSORS[wrong] is not None:
            others[tensor] = TENSORS[wrong]
        save_file(others, written, metadata=metadata)
        assert outcome(name, written)[0] == "", tensor


@pytest.mark.parametrize("number", ["100000", "9" * 20, "9" * 5000, "\u0663", "-1"])
@pytest.mark.parametrize("name", SAFETENSORS)
def test_a_number_in_a_name_may_be_any(written, name, number):
    with safe_open(written, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(written)
    kinds = {
        tensor.partition(".")[0]: tensor for tensor in sorted(tensors) if any(map(str.isdecimal, tensor.split(".")))
    }
    for tensor in kinds.values():
        parts = tensor.split(".")
        place = next(place for place, part in enumerate(parts) if part.isdecimal())
        other = ".".join((*parts[:place], number, *parts[place + 1 :]))
        save_file({**tensors, other: tensors[tensor].clone()}, written, metadata=metadata)
        assert outcome(name, written)[0] == "", other[:80]


@pytest.mark.parametrize("change", ["cut off", "longer"])
@pytest.mark.parametrize("name", SAFETENSORS)
def test_the_end_of_a_file_is_checked(written, name, change):
    content = written.read_bytes()
    written.write_bytes(content[:-5] if change == "cut off" else content + b"12345")
    words = "it ends 5 bytes early" if change == "cut off" else "one with 5 bytes behind the last tensor"
    with pytest.raises(ValueError, match=f"^{written}: expected .*, found .*{words}"):
        READERS[name].read(written)


def mutant(random: Random, name: str, good: bytes) -> bytes:
    if name in JSON:
        return json_mutant(random, json.loads(good))
    return (safetensors_mutant if name in SAFETENSORS else bytes_mutant)(random, good)


@pytest.mark.thorough
@pytest.mark.parametrize("name", READERS)
def test_ten_thousand_broken_files_are_refused_or_read(written, name):
    assert sum(COUNTS.values()) == 10_000 and COUNTS.keys() == READERS.keys()
    good, faults, count = written.read_bytes(), {}, 0
    for number in range(COUNTS[name]):
        written.write_bytes(mutant(Random(f"{SEED} {name} {number}"), name, good))
        problem, refused = outcome(name, written)
        count += refused
        if problem:
            faults[number] = problem
    assert not faults, f"{len(faults)} of {COUNTS[name]}: " + "\n".join(f"{n}: {text}" for n, text in faults.items())
    assert count > COUNTS[name] / 4, "most of them are broken"
