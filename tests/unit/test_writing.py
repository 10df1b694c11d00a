"""Files that are written whole or not at all, and what a killed process leaves of them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dit_accel.accel import writing
from dit_accel.accel.writing import replacing

WRITER = """
import sys, time
from pathlib import Path
from dit_accel.accel.writing import replacing
with replacing(Path(sys.argv[1])) as partial:
    partial.write_text("half")
    print("written", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def writer(tmp_path):
    """A process in the midst of writing tmp_path/a.json."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", WRITER, str(tmp_path / "a.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout.readline() == "written\n"
        yield process
        process.kill()


@pytest.mark.parametrize("name", ["a.json", "b.json"])
def test_what_a_killed_run_left_is_removed_by_the_next(writer, tmp_path, name):
    (left,) = tmp_path.iterdir()
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert left.read_text() == "half"
    with replacing(tmp_path / name) as partial:
        partial.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.skipif(writing.fcntl is None, reason="Windows keeps open files itself")
def test_what_a_living_run_writes_stays(writer, tmp_path):
    (held,) = tmp_path.iterdir()
    with replacing(tmp_path / "b.json") as partial:
        partial.write_text("whole")
    assert held.read_text() == "half"


def test_the_files_of_others_stay(tmp_path):
    others = [tmp_path / name for name in (".partial", ".a.partial", "a.1.partial", ".a.1.part", ".a.x.partial")]
    for path in others:
        path.touch()
    (tmp_path / ".folder.1.partial").mkdir()
    with replacing(tmp_path / "a") as partial:
        partial.touch()
    assert set(tmp_path.iterdir()) == {*others, tmp_path / ".folder.1.partial", tmp_path / "a"}


def test_the_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    path, order = tmp_path / "a", []

    def fsync(number):
        order.append(("fsync", os.fstat(number).st_ino, path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    with replacing(path) as partial:
        partial.write_text("x")
        # As a writer does that makes another file and renames it.
        other = tmp_path / "other"
        other.write_text("whole")
        other.replace(partial)
    assert order == [("fsync", path.stat().st_ino, False)]
    assert path.read_text() == "whole"


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as partial:
        partial.write_text("new")
        raise KeyboardInterrupt

    def fail(number):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"), replacing(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_system_without_locks_is_written_to(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError("no locks available")

    monkeypatch.setattr(writing.fcntl, "flock", refuse)
    abandoned: Path = tmp_path / ".b.1.partial"
    abandoned.touch()
    with replacing(tmp_path / "a") as partial:
        partial.write_text("x")
    assert set(tmp_path.iterdir()) == {tmp_path / "a", abandoned}, "nobody knows whether it is still written"
