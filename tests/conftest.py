"""Shared by every test: private folders, one seed, two threads, and a skip with its reason where there is no GPU."""

from __future__ import annotations

import os
import random
import re
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# before anything imports tvm_orient: no test reads or writes the user's own logs and kernels. The cache is one for the session,
# all workers of pytest-xdist included, so that each kernel is built once: a test that changes its files, or needs a kernel not to be
# there, takes a folder of its own. Each worker has its own logs, which decide what is built.
_WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
_SCRATCH = Path(os.environ["TVM_ORIENT_CACHE_DIR"]).parent if _WORKER else Path(tempfile.mkdtemp(prefix="tvm-orient-tests-"))
os.environ["TVM_ORIENT_LOG_DIR"] = str(_SCRATCH / f"logs{_WORKER}")
os.environ["TVM_ORIENT_CACHE_DIR"] = str(_SCRATCH / "kernels")
os.environ.pop("TVM_ORIENT_LOOKUP", None)
os.environ["TVM_ORIENT_BUILD"] = "1"  # what is tested is each problem's own kernel
os.environ["MPLBACKEND"] = "Agg"

settings.register_profile("ci", max_examples=25, derandomize=True, deadline=None, database=None)
settings.register_profile("fuzz", max_examples=2000, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ci")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=0, help="seed of random, numpy and torch before each test (default: 0)")


@pytest.hookimpl(optionalhook=True)  # pytest-xdist may be missing where the suite is not run whole
def pytest_xdist_auto_num_workers() -> int:
    """Workers of `pytest -n auto` (`make test`): one a core, four at most: each takes over a gigabyte. None beside a GPU, which tests fill and time."""
    from tvm_orient.problem.device import cuda_devices

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if cores == 1 or cuda_devices() else min(cores, 4)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked sweep or long unless it is asked for; skip what is marked gpu where there is none (the driver is asked only for such a test)."""
    for mark in ("sweep", "long"):
        if mark not in re.findall(r"\w+", config.option.markexpr):
            config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker(mark)])
            items[:] = [item for item in items if not item.get_closest_marker(mark)]
    wanted = [item for item in items if item.get_closest_marker("gpu")]
    if not wanted:
        return
    from tvm_orient.problem.device import cuda_devices

    if not cuda_devices():
        for item in wanted:
            item.add_marker(pytest.mark.skip(reason="no CUDA GPU on this machine (make gpu-check runs these on one)"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    terminalreporter.write_line(f"seed {config.getoption('--seed')} (pytest --seed N for another); hypothesis profile {settings.get_current_profile_name()}")


def pytest_unconfigure() -> None:
    if not _WORKER:
        shutil.rmtree(_SCRATCH, ignore_errors=True)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of the session share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if _WORKER else base


@pytest.fixture(autouse=True)
def _same_start(request: pytest.FixtureRequest) -> None:
    """Each test starts from the seed whatever ran before it; torch is set up only where something imported it."""
    seed = request.config.getoption("--seed")
    random.seed(seed)
    np.random.seed(seed)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(seed)
        torch.set_num_threads(2)
