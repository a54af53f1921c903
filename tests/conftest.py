"""What several test files start from."""

import shutil

import pytest
import tiny
import torch

from sparsernn import sparsify, tasks
from sparsernn.study.presets import PRESETS


@pytest.fixture
def as_it_was(tmp_path, monkeypatch):
    """The tiny tasks are known, runs go to a folder of the test's own, and what it registers is forgotten."""
    monkeypatch.setenv("SPARSERNN_RUNS", str(tmp_path / "runs"))
    tables = [(table, dict(table)) for table in (sparsify.METHODS, tasks.TASKS, PRESETS)]
    tiny.register()
    yield
    for table, before in tables:
        table.clear()
        table.update(before)


@pytest.fixture
def one_thread():
    """Torch computes on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def kernels_folder(tmp_path_factory):
    """Where kernels in CUDA are built for the CPU (emulation.py), once for all tests of a process."""
    if not shutil.which("g++"):
        pytest.skip("needs a C++ compiler")
    folder = tmp_path_factory.getbasetemp() / "emulated"
    folder.mkdir(exist_ok=True)
    return folder
