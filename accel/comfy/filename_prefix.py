"""The start of a file's name, with folders, as a person writes it into a saving node."""

from __future__ import annotations

import os
import re
from pathlib import PurePath

from ..messages import short

# Bytes. The longest name that file systems take has 255; a number, the suffix and the process are added.
LONGEST = 200
# What Windows allows in no name; the colon would make a stream of another file.
_CHARACTERS = re.compile(r'[\x00-\x1f\x7f<>:"|?*]')
# Its devices, whatever stands behind a dot.
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])(\..*)?", re.IGNORECASE)
# Folders that ComfyUI's lists leave out.
_UNLISTED = (".git",)


def checked(prefix: str, *reserved: str) -> str:
    """The prefix, normalised. reserved: folders that are kept for other files. Raises ValueError naming
    filename_prefix, what was expected and what was found, unless every system can have such a file, inside the folder
    it is written to, and lists it under its name."""
    start = os.path.normpath(prefix)
    parts = PurePath(start).parts
    name = parts[-1] if parts else ""
    folders = [part.casefold() for part in parts]
    if name in ("", "..") or PurePath(start).is_absolute():
        raise _refused("the start of a file name", prefix)
    if ".." in parts:
        raise _refused("a name inside the folder of the pack", prefix)
    if any(folder in folders for folder in _UNLISTED) or folders[0] in reserved:
        raise _refused("another folder, this one is kept for other files", prefix)
    try:
        length = len(start.encode())
    except UnicodeEncodeError as error:
        raise _refused("whole characters", prefix) from error
    if length > LONGEST:
        raise _refused(f"at most {LONGEST} bytes", prefix)
    if _CHARACTERS.search(start):
        raise _refused('none of the characters < > : " | ? * and no control characters', prefix)
    for part in parts:
        if _DEVICES.fullmatch(part.rstrip(" ")):
            raise _refused(f"no {part}, a device of Windows", prefix)
    if any(part[-1] in " ." for part in parts[:-1]):
        raise _refused("folders that end in no space or dot", prefix)
    return start


def _refused(expected: str, prefix: str) -> ValueError:
    return ValueError(f"filename_prefix: expected {expected}, found {short(prefix)}")
