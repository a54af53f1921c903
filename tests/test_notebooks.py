"""The notebooks are short papers that run: their shape, what they refuse, and that they hold for other methods too.

`python tests/test_notebooks.py [name …]` executes them in place and stores outputs as they are committed.
That the stored outputs still come out is nbval's work (`make test`).
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from sparsernn.study.config import RunConfig, check_parameters

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LONGEST_CELL, LONGEST_METHOD = 15, 25  # lines; the other one is of the cell tagged `method`, which is a method whole


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def tagged(path, tag):
    return [cell for cell in code_cells(path) if tag in cell.metadata.get("tags", [])]


def printed(cell):
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


# ---- shape


@every_notebook
def test_the_title_is_a_question(path):
    title = read(path).cells[0].source.splitlines()[0]
    assert re.fullmatch(r"# .*\?", title)


@every_notebook
def test_parameters_come_first_typed_and_with_their_unit(path):
    first, second = code_cells(path)[:2]
    assert first.metadata["tags"] == ["parameters"] and len(tagged(path, "parameters")) == 1
    for line in first.source.splitlines():
        assert re.fullmatch(r"\w+: .+ = \S+  # \S.*", line), f"{line!r}: write `name: type = value  # unit`"
    assert "globals()" in second.source, "the parameters are checked in the next cell"


@every_notebook
def test_papermill_can_list_the_parameters(path):
    from papermill import inspect_notebook

    listed = [name for name, parameter in inspect_notebook(str(path)).items() if parameter["help"]]
    assert listed == [line.split(":")[0] for line in code_cells(path)[0].source.splitlines()]


@every_notebook
def test_cells_are_few_and_short(path):
    cells = code_cells(path)
    assert len(cells) <= 16
    for cell in cells:
        most = LONGEST_METHOD if "method" in cell.metadata.get("tags", []) else LONGEST_CELL
        assert len(cell.source.splitlines()) <= most, cell.source
    assert any("papermill_description=" in cell.source for cell in cells)


def test_a_method_is_defined_and_registered_in_one_cell():
    (cell,) = tagged(ROOT / "notebooks/new_method.ipynb", "method")
    assert "(Method):" in cell.source and "sparsernn.register(" in cell.source
    assert not [c for path in NOTEBOOKS for c in tagged(path, "method") if c.source != cell.source]


@every_notebook
def test_outputs_are_those_of_one_clean_execution(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    text = json.dumps([{**o, "data": {k: v for k, v in o.get("data", {}).items() if "png" not in k}} for o in outputs])
    for private in (str(ROOT), str(Path.home()), "/tmp/", "\\r"):
        assert private not in text
    notebook = read(path)
    assert set(notebook.metadata) == {"kernelspec", "language_info"} and notebook.metadata.kernelspec.name == "python3"
    assert all(set(cell.metadata) <= {"tags"} for cell in notebook.cells)


@every_notebook
def test_a_cell_that_draws_shows(path):
    for cell in code_cells(path):
        drawn = [output for output in cell.outputs if "image/png" in output.get("data", {})]
        shows = "plots." in cell.source and "plt.show()" in cell.source
        assert shows or cell.source.splitlines()[-1].startswith("sections.") or not drawn


@every_notebook
def test_every_verdict_is_compared_and_true(path):
    for cell in tagged(path, "nbval-check-output"):
        text = printed(cell)
        assert "True" in text and "False" not in text


@every_notebook
def test_no_notebook_asks_for_the_method(path):
    assert not [
        cell.source for cell in code_cells(path) if re.search(r"\bif\b.*\b(method|task|model)\b *(==|in)", cell.source)
    ]


# ---- papermill


def papermill(name, out, *arguments):
    """The notebook run as the study runs it → the process."""
    script = [sys.executable, ROOT / "tools/kernels.py", ROOT / f"notebooks/{name}.ipynb", out, "-k", "python3"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    quiet = ["--no-progress-bar", "--log-level", "ERROR"]
    return subprocess.run(
        [*script, *quiet, *arguments], capture_output=True, text=True, env=environment, cwd=out.parent
    )


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("train", ["-p", "methd", "dense"], ["ValueError: unknown parameter 'methd'", "did you mean 'method'?"]),
        (
            "gates",
            ["-r", "kl_weight", "1e-4"],
            ["TypeError: kl_weight is '1e-4' (str); expected float", "0.0001 as a number"],
        ),
    ],
)
def test_a_wrong_parameter_stops_the_notebook_with_the_right_one(tmp_path, name, arguments, words):
    run = papermill(name, tmp_path / "out.ipynb", *arguments)
    assert run.returncode != 0
    assert all(part in run.stderr for part in words), run.stderr
    executed = [cell for cell in code_cells(tmp_path / "out.ipynb") if cell.execution_count]
    assert len(executed) == 3, "parameters, papermill's own, and the cell that refuses"


def test_a_notebook_about_no_run_refuses_too():
    assert check_parameters({"samples": 5, "seed": 1}, samples=int, seed=int) == {"samples": 5, "seed": 1}
    with pytest.raises(ValueError, match="unknown parameter 'sample'; did you mean 'samples'"):
        check_parameters({"sample": 5}, samples=int, seed=int)
    with pytest.raises(TypeError, match="samples is '5' .str.; expected int"):
        check_parameters({"samples": "5"}, samples=int, seed=int)


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("kernels", {"profile": "xx"}, "unknown profile 'xx'"),
        ("kernels", {"batches": [True]}, "batch True is not a whole number from 1 on"),
        ("kernels", {"device": "tpu"}, "unknown device 'tpu'; did you mean 'cpu'"),
        ("kl", {"samples": 0}, "samples is 0; it must be at least 2"),
        ("kl", {"seed": -1}, "seed is -1; it must be at least 0"),
        ("noise", {"every": 0}, "every is 0; it must be at least 1"),
        ("noise", {"profile": "paper"}, "unknown profile 'paper'"),
        ("noise", {"kl_weight": float("nan"), "stepz": 3}, "unknown parameter 'stepz'; did you mean 'steps'"),
        ("noise", {"kl_weight": float("inf")}, "kl_weight is inf; it must be a finite number"),
        ("own_model", {"epochs": 0}, "epochs is 0; it must be at least 1"),
        ("own_model", {"profile": "smok"}, "unknown profile 'smok'; did you mean 'smoke'"),
        ("new_method", {"task": "pydocs"}, "unknown task 'pydocs'; did you mean"),
        ("new_method", {"density": 1.0}, "density is 1.0; it must be above 0 and below 1"),
        ("new_task", {"labels": "asyncio,zzz"}, "has no folder 'zzz'"),
        ("new_task", {"pattern": ""}, "pattern is ''"),
        (
            "train",
            {"epoch": 2, "batch_size": 16, "lr": float("inf")},
            "unknown parameter 'epoch'; did you mean 'epochs'",
        ),
        ("prune", {"batch_size": 16, "lr": -float("inf")}, "lr is -inf; it must be a finite number"),
        ("gates", {"seed": 10**18}, "seed is 1000000000000000000; it must be at least 0"),
    ],
    ids=str,
)
def test_a_bad_value_is_refused_by_name_before_anything_runs(name, given, words):
    """The parameters' cell, papermill's own and the one that checks, as a kernel runs them."""
    from papermill.translators import PythonTranslator

    first, check = (cell.source for cell in code_cells(ROOT / f"notebooks/{name}.ipynb")[:2])
    namespace = {"In": [""]}
    with pytest.raises(ValueError, match=re.escape(words)):
        for cell in (first, PythonTranslator.codify(given), check):
            namespace["In"].append(cell)
            exec(cell, namespace)


def test_a_kernel_without_history_hands_over_its_constants():
    namespace = {"In": [""], "Out": {}, "_": "", "method": "dense", "seed": 3}
    config = RunConfig.from_notebook(namespace)
    assert (config.method, config.seed) == ("dense", 3)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("train", "-p method linear"),
        ("prune", "-p task pydocs-char -p method sparse-vd-w -p epochs 4 -p threshold 2.5"),
        ("gates", "-p method linear -p seed 1"),
        ("kl", "-p seed 1 -p samples 1000000"),
        ("new_method", "-p task pydocs-char -p density 0.3 -p seed 1"),
        ("new_task", "-p method sparse-vd-w -p labels asyncio,email -p seed 1"),
        ("export", "-p task pydocs-topic -p method blocks -p density 0.3 -p epochs 2"),
        ("kernels", """-y {"densities":[0.3],"batches":[2],"shapes":["64x128"]}"""),
    ],
    ids=lambda text: text.replace("-p ", "").replace(" ", "_"),
)
def test_other_methods_and_tasks_run_too(tmp_path, name, arguments):
    run = papermill(name, tmp_path / "out.ipynb", *arguments.split())
    assert run.returncode == 0, run.stderr
    for cell in tagged(tmp_path / "out.ipynb", "nbval-check-output"):
        assert "False" not in printed(cell), printed(cell)
    for cell in code_cells(tmp_path / "out.ipynb"):
        assert not [o for o in cell.outputs if o.get("name") == "stderr"], cell.outputs


# ---- storing outputs


def restore(path):
    """Execute a notebook in place: outputs of one clean run, no metadata but tags and the kernel's name."""
    from nbclient import NotebookClient

    notebook = read(path)
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    NotebookClient(notebook, timeout=600, kernel_name="python3", record_timing=False, coalesce_streams=True).execute()
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata = {"tags": cell.metadata["tags"]} if "tags" in cell.metadata else {}
    nbformat.write(notebook, path)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tools"))
    import kernels

    kernels.use_sockets()
    for path in NOTEBOOKS:
        if path.stem in (sys.argv[1:] or [path.stem]):
            restore(path)
