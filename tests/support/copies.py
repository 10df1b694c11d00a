"""Copies of the pack's tree, as a clone or an archive would have it."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def tracked(*options: str) -> list[str]:
    """Paths that `git ls-files` lists with these options; without git the test is skipped."""
    try:
        done = subprocess.run(["git", "ls-files", "-z", *options], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"git does not list the files of {ROOT}: {error}")
    return list(filter(None, done.stdout.split("\0")))


def copy_tree(target: Path) -> Path:
    """Copies what git tracks, and new files that it does not ignore, to the folder `target`."""
    for name in tracked("--cached", "--others", "--exclude-standard"):
        # A file that was removed is listed until that is committed.
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target
