"""A config says a run completely, and refuses what it does not understand with the nearest right thing."""

from dataclasses import fields

import pytest
import torch
import yaml

from sparsernn import sparsify
from sparsernn.sparsify.attach import attach
from sparsernn.sparsify.options import names_of
from sparsernn.sparsify.plan import Plan
from sparsernn.study import config
from sparsernn.study.asked import study_configs
from sparsernn.study.config import RunConfig
from sparsernn.study.presets import PLAN


def test_defaults_are_the_smoke_run_of_the_first_model():
    run = RunConfig()
    assert (run.task, run.model, run.method, run.profile, run.seed) == (
        "pydocs-topic",
        "lstm-64",
        "sparse-vd-wgn",
        "smoke",
        0,
    )


@pytest.mark.parametrize("given, hint", [
    ({"task": "pydocs-topics"}, "'pydocs-topic'"),
    ({"method": "sparse-vd"}, "'sparse-vd-w'"),
    ({"profile": "quik"}, "'quick'"),
    ({"model": "lstm64"}, "'lstm-64'"),
])  # fmt: skip
def test_an_unknown_name_is_refused_with_the_nearest(given, hint):
    with pytest.raises(ValueError, match=f"did you mean {hint}"):
        RunConfig(**given)


@pytest.mark.parametrize(
    "given", [{"kl_weight": "1e-4"}, {"seed": 1.0}, {"seed": True}, {"epochs": "3"}, {"method": 3}]
)
def test_a_wrong_type_is_refused(given):
    with pytest.raises(TypeError, match=next(iter(given))):
        RunConfig(**given)


def test_text_that_is_a_number_is_told_how_to_be_one():
    with pytest.raises(TypeError, match="YAML reads 1e-4 as text"):
        RunConfig(kl_weight="1e-4")


def test_a_whole_number_will_do_for_a_rate():
    assert RunConfig(kl_weight=2).options.kl_weight == 2.0


@pytest.mark.parametrize(
    "given",
    [
        {"seed": -1},
        {"epochs": 0},
        {"batch_size": 0},
        {"lr_hold": 1.0},
        {"lr_rest": 1.1},
        {"lr_rest": 0.4, "lr_hold": 0.5},
        {"dropout": -0.1},
        {"fine_tune": 1.5},
    ],
)
def test_a_number_out_of_range_is_refused(given):
    with pytest.raises(ValueError, match=next(iter(given))):
        RunConfig(**given)


def test_fine_tuning_and_sleeping_refuse_each_other():
    with pytest.raises(ValueError, match="fine_tune and sleep_above do not go together; set one of them to 0"):
        RunConfig(profile="quick", sleep_above=4.0)
    assert RunConfig(profile="quick", sleep_above=4.0, fine_tune=0.0).options.sleep_above == 4


def test_variant_names_what_differs_from_the_preset_sorted():
    plan = RunConfig(profile="quick").plan
    run = RunConfig(profile="quick", threshold=4.0, kl_weight=2.5, lr=plan.lr)
    assert run.variant == "kl_weight=2.5,threshold=4"
    assert run.directory.name == "quick-s0-kl_weight=2.5,threshold=4"
    assert RunConfig(profile="quick").directory.name == "quick-s0"


def test_a_method_with_a_model_of_its_own_brings_it():
    assert RunConfig(method="linear").model == "bag-of-words"
    with pytest.raises(ValueError, match="bag-of-words"):
        RunConfig(method="linear", model="lstm-64")


def notebook(*cells, **values):
    return {"In": ["", *cells], "exit": object(), "Out": {}} | values


def test_parameters_of_a_notebook_are_its_constant_cells():
    cells = [
        'task: str = "pydocs-char"  # a comment\nseed: int = 0',
        "# Parameters\nseed = 3",
        "from x import y",
        "later = 5 * 2",
    ]
    run = RunConfig.from_notebook(notebook(*cells, task="pydocs-char", seed=3, later=10))
    assert (run.task, run.seed) == ("pydocs-char", 3)


def test_a_misspelt_parameter_is_refused_with_the_nearest():
    cells = ["seed = 0", "# Parameters\nmethd = 'dense'"]
    with pytest.raises(ValueError, match="'methd'; did you mean 'method'"):
        RunConfig.from_notebook(notebook(*cells, seed=0, methd="dense"))


def test_runs_go_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSERNN_RUNS", str(tmp_path))
    assert RunConfig().directory.is_relative_to(tmp_path)
    monkeypatch.delenv("SPARSERNN_RUNS")
    monkeypatch.setenv("SPARSERNN_ROOT", str(tmp_path / "project"))
    assert config.runs_root() == tmp_path / "project" / "runs"


def test_a_study_asks_for_its_seeds_or_for_the_one_that_a_run_names():
    asked = ["sparse-vd-w", {"sparse-vd-wgn": {"kl_weight": 0.5}}, {"sparse-vd-wgn": {"seed": 7}}]
    configs = study_configs({"profile": "quick", "seeds": [0, 1], "tasks": {"pydocs-topic": asked[:2]}})
    half = ("sparse-vd-wgn", "kl_weight=0.5")
    found = [(c.method, c.variant, c.seed) for c in configs]
    assert found == [("sparse-vd-w", "", 0), ("sparse-vd-w", "", 1), (*half, 0), (*half, 1)]
    configs = study_configs({"profile": "quick", "seeds": [0], "tasks": {"pydocs-topic": asked[2:]}})
    assert [(c.method, c.seed) for c in configs] == [("sparse-vd-wgn", 7)]
    with pytest.raises(ValueError, match="pydocs-topic, dense: unknown parameter 'sed'; did you mean 'seed'"):
        study_configs({"profile": "quick", "seeds": [0], "tasks": {"pydocs-topic": [{"dense": {"sed": 1}}]}})


@pytest.mark.parametrize("value", ["float('inf')", "float('nan')", "2 * 3"])
def test_a_cell_with_a_computed_value_is_checked_all_the_same(value):
    cells = [f"kl_wieght = 2\nlr = {value}"]
    given = {"lr": eval(value), "kl_wieght": 2}
    if "float" in value:
        with pytest.raises(ValueError, match="'kl_wieght'; did you mean 'kl_weight'"):
            RunConfig.from_notebook(notebook(*cells, **given))
        with pytest.raises(ValueError, match="lr is (inf|nan); it must be a finite number"):
            RunConfig.from_notebook(notebook(f"lr = {value}", lr=given["lr"]))
    else:
        assert RunConfig.from_notebook(notebook(f"lr = {value}", lr=6)).plan.lr == 6.0


def test_an_option_the_method_does_not_have_is_refused_with_those_it_has():
    with pytest.raises(ValueError, match="dense has no kl_weight; its options: none"):
        RunConfig(method="dense", kl_weight=2.0)
    with pytest.raises(ValueError, match="binary-dropout has no threshold; its options: dropout"):
        RunConfig(method="binary-dropout", threshold=2.0)
    assert RunConfig(method="dense", kl_weight=None).overrides == {}


def test_a_relative_runs_folder_is_the_project_s_wherever_the_caller_stands(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSERNN_ROOT", str(tmp_path / "project"))
    monkeypatch.setenv("SPARSERNN_RUNS", "elsewhere/runs")
    monkeypatch.chdir(tmp_path)
    assert config.runs_root() == tmp_path / "project" / "elsewhere" / "runs"


def test_a_number_that_needs_all_its_digits_keeps_them_in_the_variant():
    one, two = (RunConfig(profile="quick", lr=lr).variant for lr in (0.00123456789, 0.00123456788))
    assert one != two and RunConfig(profile="quick", kl_weight=2).variant == "kl_weight=2"


NAN, INF = float("nan"), float("inf")
NUMBERS = [one for kind in (Plan, *{sparsify.make(name).Options for name in sparsify.names()}) for one in fields(kind)]
MALFORMED = [NAN, INF, -INF, -1e300, "2", "1e-4", True, [1], {"a": 1}, b"1", 1j]


@pytest.mark.parametrize("door", ["run", "notebook", "attach", "study"])
def test_no_door_takes_a_malformed_number(door):
    """Every numeric parameter × every malformed value, by each door: refused by name, with a type or value error."""
    taken, tried = [], 0
    for one in {one.name: one for one in NUMBERS if one.type in (int, float)}.values():
        method = next(n for n in sparsify.names() if one.name in (*PLAN, *names_of(sparsify.make(n).Options)))
        for value in [*MALFORMED, *([1.5] if one.type is int else [])]:
            if value == -1e300 and one.name in ("threshold", "log_sigma", "log_sigma_groups", "sleep_above"):
                continue  # no bound: a finite number
            tried += 1
            try:
                if door == "run":
                    RunConfig(method=method, profile="quick", **{one.name: value})
                elif door == "notebook":
                    cell = f"method = {method!r}\nprofile = 'quick'\n{one.name} = 0"
                    RunConfig.from_notebook(notebook(cell, method=method, profile="quick", **{one.name: value}))
                elif door == "study":
                    asked = {"pydocs-topic": [{method: {one.name: value}}]}
                    study_configs({"profile": "quick", "seeds": [0], "tasks": asked})
                else:
                    model = torch.nn.Sequential(torch.nn.GRU(2, 2))
                    attach(model, method, 10, 10, **{one.name: value})
            except (TypeError, ValueError) as refusal:
                assert one.name in str(refusal), (one.name, value, refusal)
            else:
                taken.append((one.name, value))
    assert tried > 200 and not taken


@pytest.mark.parametrize("seed", [-1, 2**32, 10**18, 1.0, "0", True, None, NAN])
def test_a_seed_that_is_none_is_refused(seed):
    with pytest.raises((TypeError, ValueError), match="seed"):
        RunConfig(seed=seed)


def test_a_study_takes_the_name_of_a_paper_as_text_and_no_infinite_threshold():
    study = yaml.safe_load(
        """{profile: quick, seeds: [0], tasks: {pydocs-topic: [sparse-vd-w: {kl_fit: "1812.05692"}]}}"""
    )
    (config,) = study_configs(study)
    assert config.options.kl_fit == "1812.05692" and config.variant == "kl_fit=1812.05692"
    study["tasks"]["pydocs-topic"] = yaml.safe_load("[sparse-vd-w: {kl_fit: 1812.05692}]")
    with pytest.raises(TypeError, match="kl_fit is 1812.05692 .float.; expected str .in quotes it is text"):
        study_configs(study)
    study["tasks"]["pydocs-topic"] = yaml.safe_load("[sparse-vd-w: {threshold: .inf}]")
    with pytest.raises(ValueError, match="threshold is inf; it must be a finite number"):
        study_configs(study)


@pytest.mark.parametrize("value", ["[float('inf'), 2]", "{'a': float('nan')}", "-float('inf')"])
def test_no_constant_of_papermill_s_hides_the_names_beside_it(value):
    given = {"gate_densities": eval(value), "epoch": 2}
    with pytest.raises(ValueError, match="'epoch'; did you mean 'epochs'"):
        RunConfig.from_notebook(notebook(f"epoch = 2\ngate_densities = {value}", **given))


def test_a_row_of_the_table_is_read_back_as_the_run_it_is_of():
    given = {"block": "16x4", "density": 0.05, "epochs": 3, "batch_size": 4}
    one = RunConfig("pydocs-char", "bayes-512", "blocks", "short", 2, **given)
    row = {name: getattr(one, name) for name in ("task", "model", "method", "profile", "seed", "variant")}
    assert RunConfig.of_row(row) == one and RunConfig.of_row(row).plan.batch_size == 4
    assert RunConfig.of_row(row | {"variant": ""}) == RunConfig("pydocs-char", "bayes-512", "blocks", "short", 2)
