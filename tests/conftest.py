"""Shared fixtures, the tiers, how tests are shared among processes, and the rule that CI must never pass by skipping
the real ComfyUI."""

import os
import sys
from pathlib import Path

import pytest

# `python -m pytest` puts the root on the path, where our nodes/ would shadow ComfyUI's nodes.py.
ROOT = Path(__file__).resolve().parents[1]
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != ROOT]

from dit_accel.accel.headless.embedded import import_comfyui  # noqa: E402
from dit_accel.accel.headless.server import find_comfyui, missing_comfyui  # noqa: E402
from dit_accel.tests.support.tiers import mark_the_rest_thorough  # noqa: E402

WORKERS = 2
# One device, one browser, and what measures time or memory: no second process beside it.
ALONE = ("gpu", "browser", "slow")
# Seconds for a test of these tiers, where it has no limit of its own; the others have that of pyproject.toml.
LONG = {"slow": 3600, "matrix": 3600, "thorough": 1200}


def pytest_configure(config):
    """Every tier but `gpu` runs the kernels in Triton's interpreter, whatever the machine has. Triton reads the
    variable when a kernel is defined, so the two cannot share a process."""
    os.environ["TRITON_INTERPRET"] = "0" if config.option.markexpr == "gpu" else "1"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """Two processes for a folder or several files, none beside this one for a single file."""
    one_file = len(config.args) == 1 and ".py" in config.args[0]
    if one_file or config.option.markexpr in ALONE or (os.cpu_count() or 1) < WORKERS:
        return 0
    # For the workers and their servers, whose threads would only wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, os.cpu_count() // WORKERS)))
    return WORKERS


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file stays together for its models, and all that share a session's server; what shares nothing goes where there
    is time, so that no process ends long before the other."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.split("::")[0]
            folder = file.rpartition("/")[0]
            if folder in ("tests/kernels", "tests/unit"):
                return nodeid if file.endswith("test_compile_matrix.py") else nodeid.split("[")[0]
            return folder if folder in ("tests/server", "tests/browser") else file

    return Scheduling(config, log)


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items):
    mark_the_rest_thorough(items, pytest.mark.thorough)
    for item in items:
        tier = next(filter(item.get_closest_marker, LONG), None)
        if tier and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(LONG[tier]))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Under CI a skipped test of the real thing is a failure."""
    report = yield
    folder = item.path.relative_to(ROOT).parts[1]
    if report.skipped and os.environ.get("CI") and folder in ("comfy", "server", "browser", "slow"):
        report.outcome = "failed"
        report.longrepr = f"skipped under CI: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def comfyui() -> Path:
    """The ComfyUI folder; without one the test is skipped, or fails where CI is set."""
    path = find_comfyui()
    if path is None:
        reason = missing_comfyui()
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path


@pytest.fixture(scope="session")
def comfy(comfyui: Path):
    """ComfyUI's Python code, importable in this process (`import comfy...` after asking for this)."""
    sys.dont_write_bytecode = True
    import_comfyui(comfyui, "--cpu")

    return comfyui
