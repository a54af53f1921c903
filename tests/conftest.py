"""What several test files start from."""

import pytest
import tiny

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
