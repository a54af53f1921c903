# The study as a graph of notebook runs (study.yaml says which, or another). `make study` starts it, here or with a profile of
# profiles/ on a cluster. The file `drawn` says that a run's notebooks went through; its record is no output, for snakemake
# removes those of a job that fails, and a drawing may. Executed notebooks and run.log are a log: a failure leaves the notebook
# with the error in it and does not stop the others; what was begun goes on where it stood.
import os
import re
import shlex

from sparsernn.files import project_root
from sparsernn.report.publish import owed
from sparsernn.study.asked import read_study, study_configs
from sparsernn.study.config import needed
from sparsernn.study.forecast import Forecast
from sparsernn.study.opponents import back_off_directory, count_back_off

os.environ["SPARSERNN_KEEP_SMOKE"] = "1"  # a run of a study is kept, whatever its profile
study = read_study(project_root() / config.get("study", "study.yaml"))  # --config study=papers.yaml
PROFILE = study["profile"]
ASKED = owed(study) if config.get("owed") else study_configs(study)  # --config owed=1: of which results/ has no row
CONFIGS = {str(one.directory): one for one in [*ASKED, *(before for one in ASKED for before in needed(one))]}
NGRAMS = {
    str(back_off_directory(task, PROFILE, order)): (task, order)
    for task, orders in study.get("ngrams", {}).items()
    for order in orders
}
FORECAST = Forecast.gather()


def parameters(one):
    """What papermill is given: text by -r, for -p would read a number in it."""
    given = ((("-r" if isinstance(value, str) else "-p"), name, value) for name, value in one.given().items())
    return " ".join(f"{flag} {name} {shlex.quote(str(value))}" for flag, name, value in given)


def more_each_time(first):
    """What a job asks for, which was stopped for having too little the last time."""
    return lambda wildcards, attempt: attempt * first


rule all:
    input:
        [f"{run}/drawn" for run in CONFIGS],
        [f"{run}/record.json" for run in NGRAMS],


# A rule a run, because only a rule has a priority: what study.yaml lists first starts first.
for number, (run, one) in enumerate(CONFIGS.items()):

    rule:
        name:
            f"train_prune_gates_{number}"
        input:
            [f"{before.directory}/drawn" for before in needed(one)],
        output:
            touch(f"{run}/drawn"),
        log:
            train=f"{run}/train.ipynb",
            prune=f"{run}/prune.ipynb",
            gates=f"{run}/gates.ipynb",
        benchmark:
            f"{run}/benchmark.tsv"
        params:
            run=run,
            said=f"{run}/run.log",  # not declared as a log: those are deleted when a requeued job starts again
            given=parameters(one),
        priority: len(CONFIGS) - number
        resources:
            runtime=more_each_time(FORECAST.minutes(one)),
            mem_mb=more_each_time(FORECAST.memory_mb(one)),
        shell:
            '{{ echo "$(date -u +%FT%TZ) on ${{SLURMD_NODENAME:-$(hostname)}} ${{SLURM_JOB_ID:-}}";'
            " for name in train prune gates; do"
            " python tools/kernels.py notebooks/$name.ipynb {params.run:q}/$name.ipynb -k python3"
            " --no-progress-bar --log-level ERROR {params.given} || exit 1; done; }} 2>&1 | tee -a {params.said:q}"


rule back_off:
    output:
        "{run}/record.json",
    wildcard_constraints:
        run="|".join(map(re.escape, NGRAMS)),
    resources:
        runtime=more_each_time(120),  # orders 5 to 7 of the largest corpus take minutes and 2 GB
        mem_mb=more_each_time(8000),
    run:
        count_back_off(NGRAMS[wildcards.run][0], PROFILE, NGRAMS[wildcards.run][1])
