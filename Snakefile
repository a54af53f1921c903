# The study as a graph of notebook runs (study.yaml says which). `make study` calls it; on a cluster, snakemake's
# executor plug-ins do. A run's record is its output, its executed notebooks are its log: a failure leaves the notebook
# with the error in it and does not stop the others; what was begun goes on where it stood.
import yaml
from pathlib import Path

from sparsernn.config import RunConfig, runs_root
from sparsernn.opponents import back_off_directory

study = yaml.safe_load(Path("study.yaml").read_text())
PROFILE, RUNS = study["profile"], runs_root()
CONFIGS = {
    str(config.directory): config
    for task, methods in study["tasks"].items()
    for method in methods
    for seed in study["seeds"]
    for config in [RunConfig(task=task, method=method, profile=PROFILE, seed=seed)]
}
NGRAMS = {
    str(back_off_directory(task, PROFILE, order)): (task, order)
    for task, orders in study["ngrams"].items()
    for order in orders
}


rule all:
    input: RUNS / "comparison.txt"


rule train_prune_gates:
    output: "{directory}/record.json"
    wildcard_constraints: directory="|".join(CONFIGS)
    log: train="{directory}/train.ipynb", prune="{directory}/prune.ipynb", gates="{directory}/gates.ipynb"
    threads: 1
    params: given=lambda wildcards: "-p task {0.task} -p method {0.method} -p profile {0.profile} -p seed {0.seed}".format(
        CONFIGS[wildcards.directory])
    shell:
        "for name in train prune gates; do"
        " python tools/kernels.py notebooks/$name.ipynb {wildcards.directory}/$name.ipynb -k python3"
        " --no-progress-bar --log-level ERROR {params.given} || exit 1; done"


rule back_off:
    output: "{directory}/record.json"
    wildcard_constraints: directory="|".join(NGRAMS)
    run:
        from sparsernn.opponents import count_back_off

        task, order = NGRAMS[wildcards.directory]
        count_back_off(task, PROFILE, order)


# Runs that failed are missing here, and the report says so: it needs no run to be drawn.
rule report:
    input: [f"{directory}/record.json" for directory in [*CONFIGS, *NGRAMS]]
    output: RUNS / "comparison.txt"
    log: RUNS / "report.ipynb"
    shell: "python tools/kernels.py notebooks/report.ipynb {log} -k python3 --no-progress-bar --log-level ERROR -p profile {PROFILE}"
