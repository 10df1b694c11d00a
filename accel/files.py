"""The doors for JSON and safetensors: every file that the pack reads comes through one of them, its size checked before
its content is believed. Beside them the pack's own files of both kinds."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .messages import short
from .version import PACK_VERSION
from .writing import replacing

# Bytes of a JSON text and of a safetensors header.
JSON_LIMIT = 8 << 20
HEADER_LIMIT = 32 << 20
# What else no file needs that is not broken or made to break something: values of a text, lists within lists, tensors,
# and digits of a whole number, which a float must hold.
VALUE_LIMIT = 500_000
DEPTH_LIMIT = 200
TENSOR_LIMIT = 50_000
DIGIT_LIMIT = 308


def parse_json(text: str | bytes) -> Any:
    """What a JSON text holds, bytes being in UTF-8, 16 or 32. Raises ValueError saying what was found where it is no
    JSON, or more than the limits above allow; the caller names the file and what was expected."""
    if len(text) > JSON_LIMIT:
        raise ValueError(f"more than {_megabytes(JSON_LIMIT)} of text")
    try:
        if isinstance(text, bytes):
            text = text.decode(json.detect_encoding(text))
        # In a text that is refused, or in one of its strings, such numbers would do no harm; to find out costs more.
        if _LONG_NUMBER.search(text):
            raise ValueError(f"a number of more than {DIGIT_LIMIT} digits")
        if sum(map(text.count, "[{,")) > VALUE_LIMIT:
            raise ValueError(f"more than {VALUE_LIMIT} values")
        content = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"no JSON ({error})") from error
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    _need_shallow(content)
    return content


def load_json(path: Path, what: str) -> Any:
    """What a JSON file holds. what: the file should be, for the message. Raises ValueError naming the file, what was
    expected and what was found."""
    try:
        need_file(path)
        with path.open("rb") as file:
            return parse_json(file.read(JSON_LIMIT + 1))
    except OSError as error:
        raise ValueError(f"{path}: expected {what}, found {_reason(error)}") from error
    except ValueError as error:
        raise ValueError(f"{path}: expected {what}, found {error}") from error


def mapped(path: Path, most: int = TENSOR_LIMIT) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of anybody's safetensors file, mapped into memory, and its metadata. most: tensors that it may have.

    Raises ValueError saying what was expected and what was found when it is none; the caller names the file.
    FileNotFoundError where there is no file.
    """
    try:
        return _open(path, most)
    except ValueError as error:
        raise ValueError(f"expected a safetensors file, found {error}") from error


def write(path: Path, tensors: Mapping[str, Tensor], kind: str, version: int, **metadata: str) -> None:
    """Writes the tensors with the format `kind`, its version, the pack's version and `metadata`."""
    about = {"format": kind, "version": str(version), "pack": PACK_VERSION, **metadata}
    with replacing(path) as partial:
        # Not save_file: that makes a file which only its owner may read.
        partial.write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata=about))


def read(path: Path, kind: str, version: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, mapped into memory, and the metadata of a file that `write` wrote: whoever changes the file changes
    them, so what is to be kept has to be cloned, once its metadata have been checked.

    Raises ValueError naming the file, what was expected and what was found, when it is of another format or version
    or no safetensors file; FileNotFoundError where there is no file.
    """
    try:
        tensors, metadata = _open(path, TENSOR_LIMIT)
    except ValueError as error:
        raise ValueError(f"{path}: expected a file of the format {kind}, found {error}") from error
    actual = metadata.get("format")
    if actual != kind:
        description = f"the format {actual}" if actual else "a safetensors file of another kind"
        raise ValueError(f"{path}: expected a file of the format {kind}, found {description}")
    if metadata.get("version") != str(version):
        raise ValueError(f"{path}: expected version {version} of {kind}, found version {metadata.get('version')}")
    return tensors, metadata


def write_json(path: Path, kind: str, version: int, content: Mapping[str, Any]) -> None:
    """Writes the content with the format `kind`, its version and the pack's version."""
    about = {"format": kind, "version": version, "pack": PACK_VERSION}
    with replacing(path) as partial:
        partial.write_text(json.dumps({**about, **content}, indent=2, allow_nan=False) + "\n", "utf-8")


def read_json(path: Path, kind: str, version: int) -> dict[str, Any]:
    """What `write_json` wrote. Raises ValueError naming the file, what was expected and what was found, when it is of
    another format or version or no JSON; the content is not checked."""
    content = load_json(path, f"a JSON file of the format {kind}")
    actual = (content.get("format"), content.get("version")) if isinstance(content, dict) else None
    if actual != (kind, version):
        raise ValueError(f"{path}: expected the format {kind}, version {version}, found {short(actual)}")
    return content


def need_file(path: Path) -> None:
    """Raises ValueError saying what was found where it is there but no file: a pipe would be waited for forever."""
    if path.exists() and not path.is_file():
        raise ValueError(f"a {'folder' if path.is_dir() else 'device'}")


def need_whole(path: Path) -> None:
    """Raises ValueError saying what was expected and what was found where the file's name says that it is one of
    several shards."""
    shard = _SHARD.search(path.stem)
    if shard and int(shard[2]) > 1:
        raise ValueError(f"expected a whole model in one file, found shard {shard[1]} of {shard[2]}: join them first")


def _open(path: Path, most: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """As `mapped`; its ValueErrors say only what was found."""
    try:
        _need_header(path, most)
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(_reason(error)) from error
    # The latter three: dtypes and sizes that this torch does not have.
    except (SafetensorError, AttributeError, RuntimeError, TypeError) as error:
        raise ValueError(_broken(path, str(error))) from error


def _need_header(path: Path, most: int) -> None:
    """Raises ValueError saying what was found unless there is a file with a whole header of a size that is read at
    once, and at most so many tensors: reading a large header takes safetensors seconds."""
    need_file(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if 8 + length > path.stat().st_size:
            raise ValueError(_broken(path, "without a whole header"))
        if length > HEADER_LIMIT:
            raise ValueError(f"one with a header of {_megabytes(length)}, more than {_megabytes(HEADER_LIMIT)}")
        # Never in a text, where the last quotation mark would have a backslash.
        count = file.read(length).count(b'"data_offsets"')
    if count > most:
        raise ValueError(f"one of {count} tensors, more than {most}")


def _broken(path: Path, reason: str) -> str:
    """What a file is that safetensors does not read."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        # torch.save writes a zip archive, and older versions a bare pickle.
        if start[:2] == b"PK" or start[:1] == b"\x80":
            return f"a pickle ({reason})"
        length = int.from_bytes(start, "little")
        header = file.read(min(length, JSON_LIMIT))
    try:
        tensors = {name: entry for name, entry in parse_json(header).items() if name != "__metadata__"}
        behind = size - 8 - length - max(entry["data_offsets"][1] for entry in tensors.values())
    except (AttributeError, LookupError, TypeError, ValueError):  # Not even its header is one.
        return f"a broken one ({reason})"
    if behind > 0:
        return f"one with {behind} bytes behind the last tensor"
    return f"a broken one ({f'it ends {-behind} bytes early' if behind else reason})"


_SHARD = re.compile(r"-0*([0-9]{1,9})-of-0*([0-9]{1,9})$")
_LONG_NUMBER = re.compile(rf"[0-9]{{{DIGIT_LIMIT + 1}}}")
_TOO_DEEP = f"brackets within brackets, more than {DEPTH_LIMIT} deep"


def _need_shallow(content: Any) -> None:
    level = [content] if isinstance(content, dict | list) else []
    for _ in range(DEPTH_LIMIT):
        level = [child for node in level for child in _children(node) if isinstance(child, dict | list)]
        if not level:
            return
    raise ValueError(_TOO_DEEP)


def _children(node: dict[str, Any] | list[Any]) -> Any:
    return node.values() if isinstance(node, dict) else node


def _reason(error: OSError) -> str:
    return f"one that cannot be read ({error.strerror or error})"


def _megabytes(size: int) -> str:
    return f"{size / 2**20:.0f} MB"
