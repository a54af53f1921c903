"""A study on a real Slurm of two nodes, both on this machine, one of which is lost in the middle.

Needs root and Debian's packages slurm-wlm and munge, which it installs where they are missing; skipped by name elsewhere.
Slow (minutes): a lost node is given up after half a minute, and every job starts snakemake twice. Left out of `make test`:
`.venv/bin/pytest -m slow tests/test_cluster.py`.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml
from projects import ROOT, copy_project

from sparsernn.study.asked import study_configs

CONF = """
ClusterName=mini
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={here}/munge.sock,cred_expire=5
SlurmctldPidFile={here}/slurmctld.pid
SlurmctldLogFile={here}/slurmctld.log
StateSaveLocation={here}/state
SlurmdPidFile={here}/%n.pid
SlurmdLogFile={here}/%n.log
SlurmdSpoolDir={here}/spool-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
MinJobAge=600
SlurmdTimeout=10
KillWait=5
NodeName=node1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={port1} CPUs=2 RealMemory=16000 State=UNKNOWN
NodeName=node2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={port2} CPUs=2 RealMemory=16000 State=UNKNOWN
PartitionName=main Nodes=node1,node2 Default=YES MaxTime=1:00:00 State=UP
"""
FASTER = {  # of the profiles as they are shipped: a cluster of one machine answers at once
    "slurm": {"slurm-init-seconds-before-status-checks": 2, "seconds-between-status-checks": 1, "latency-wait": 10},
    "generic": {"seconds-between-status-checks": 1, "latency-wait": 10},
}
PARAMETERS = 'task = "pydocs-topic"\nmodel = None\nmethod = "dense"\nprofile = "smoke"\nseed = 0'
TRAIN = "from sparsernn import RunConfig, ensure\nrun = ensure(RunConfig.from_notebook(globals()), print)"
STUDY = {
    "profile": "smoke",
    "seeds": [0, 1],
    "tasks": {"pydocs-topic": ["sparse-vd-wgn", {"dense": {"epochs": 16}}]},
}


@pytest.fixture(scope="module")
def installed():
    """Slurm's programs, fetched by apt where they are not there."""
    if os.geteuid() != 0:
        pytest.skip("a Slurm of one's own needs root")
    if shutil.which("slurmctld") and shutil.which("munged"):
        return
    if not shutil.which("apt-get"):
        pytest.skip("slurmctld is not installed, and there is no apt-get to fetch slurm-wlm")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update"], ["install", "-y", "--no-install-recommends", "slurm-wlm", "munge"]):
        got = subprocess.run(["apt-get", *words], env=environment, capture_output=True, text=True)
        if got.returncode:
            pytest.skip(f"apt-get {words[0]} did not work, so there is no slurmctld: {got.stderr[-300:]}")


@pytest.fixture
def cluster(installed):
    """Controller and two nodes up → their folder and the variables that Slurm's commands need; all down in the end."""
    here = Path(tempfile.mkdtemp(prefix="slurm-"))  # short, for paths of Slurm's sockets below it end at 108 bytes
    for folder in ("state", "bin"):
        (here / folder).mkdir()
    ports = dict(zip(("port", "port1", "port2"), free_ports(3), strict=True))
    conf = here / "slurm.conf"
    conf.write_text(CONF.format(here=here, **ports))
    # snakemake's inner srun is called without SLURM_CONF, which on a cluster lies in its usual place
    (here / "bin/srun").write_text(f'#!/bin/sh\nSLURM_CONF="{conf}" exec {shutil.which("srun")} "$@"\n')
    (here / "bin/srun").chmod(0o755)
    (here / "munge.key").write_bytes(os.urandom(1024))
    (here / "munge.key").chmod(0o600)
    environment = {"SLURM_CONF": str(conf), "PATH": f"{here}/bin:{os.environ['PATH']}"}
    files = {"key-file": "munge.key", "socket": "munge.sock", "pid-file": "munged.pid", "log-file": "munged.log"}
    munge = ["munged", "--force", f"--seed-file={here}/munged.seed"]

    def start(*words):
        subprocess.run(words, env=os.environ | environment, check=True, capture_output=True, text=True)

    try:
        start(*munge, *(f"--{option}={here}/{name}" for option, name in files.items()))
        start("slurmctld")
        for node in ("node1", "node2"):
            start("slurmd", "-N", node)
        until(lambda: states(environment) == {"node1": "idle", "node2": "idle"}, 30)
        yield here, environment
    finally:
        crash(conf, *here.glob("*.pid"), nodes=("node1", "node2"))
        shutil.rmtree(here, ignore_errors=True)


def free_ports(number):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def states(environment):
    said = subprocess.run(
        ["sinfo", "-h", "-N", "-o", "%N %T"], env=os.environ | environment, capture_output=True, text=True, timeout=20
    )
    return dict(line.split() for line in said.stdout.splitlines())


def crash(conf, *daemons, nodes):
    """End daemons, by their pid files, and all that runs on nodes, without a word to anyone."""
    pids = [int(daemon.read_text()) for daemon in daemons] + [process.pid for process in of_this(conf, *nodes)]
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def of_this(conf, *nodes):
    """The processes of jobs on nodes of this cluster, with Slurm's own that would report their end."""
    found = set()
    for process in psutil.process_iter():
        try:
            there = process.environ()
            if there.get("SLURMD_NODENAME") in nodes and f"{conf.parent}/bin" in there.get("PATH", ""):
                found |= {process, *(parent for parent in process.parents() if parent.name() == "slurmstepd")}
        except psutil.Error:  # gone meanwhile
            continue
    return found


def until(true, seconds):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.1)


def bits(directory):
    """What a run is, without clocks."""
    record = {n: v for n, v in json.loads((directory / "record.json").read_text()).items() if n != "train_seconds"}
    lines = [line.rsplit(",", 1)[0] for line in (directory / "metrics.csv").read_text().splitlines()]
    return (directory / "model.safetensors").read_bytes(), record, lines


@pytest.mark.slow
@pytest.mark.parametrize("profile", FASTER)
def test_a_study_survives_the_loss_of_a_node_and_ends_with_the_bits_of_one_machine(
    cluster, tmp_path, monkeypatch, profile
):
    here, slurm = cluster
    project = tmp_path / "project"
    notebooks = {"train": [PARAMETERS, TRAIN], "prune": [PARAMETERS, "seed"], "gates": [PARAMETERS, "seed"]}
    environment = copy_project(project, STUDY, notebooks) | {"SLURM_CONF": slurm["SLURM_CONF"]}
    environment |= {"PATH": f"{here}/bin:{environment['PATH']}"}
    for name in ("data", "results"):  # the corpus may be built already; minutes and memory are forecast from the rows
        (project / name).symlink_to(ROOT / name)
    settings = project / f"profiles/{profile}/config.yaml"
    settings.write_text(yaml.safe_dump(yaml.safe_load(settings.read_text()) | FASTER[profile], width=1000))
    monkeypatch.setenv("SPARSERNN_RUNS", str(project / "runs"))
    configs = study_configs(STUDY)

    def training_on(node):
        """A run that is in the middle of its training on a node."""
        for one in configs:
            said = one.directory / "run.log"
            if said.exists() and f"on {node} " in said.read_text() and (one.directory / "metrics.csv").exists():
                if not (one.directory / "record.json").exists():
                    return one
        return None

    command = ["make", "study", f"PROFILE=profiles/{profile}"]
    with subprocess.Popen(
        command, cwd=project, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as study:
        try:
            until(lambda: study.poll() is not None or training_on("node2"), 300)
            lost = training_on("node2")
            assert lost, study.stdout.read()
            crash(here / "slurm.conf", here / "node2.pid", nodes=("node2",))
            told, _ = study.communicate(timeout=400)
        finally:
            study.kill()
    assert study.returncode == 0, told
    places = {one: (one.directory / "run.log").read_text() for one in configs}
    assert "on node2 " in places[lost] and "on node1 " in places[lost], "begun on the lost node, ended on the other"
    assert sum("on node1 " in text for text in places.values()) >= 2

    monkeypatch.setenv("SPARSERNN_RUNS", str(tmp_path / "alone"))
    alone = "from sparsernn import RunConfig, ensure\nfor given in {}: ensure(RunConfig(**given))"
    given = [one.given() for one in configs]
    kept = environment | {"SPARSERNN_RUNS": str(tmp_path / "alone"), "SPARSERNN_KEEP_SMOKE": "1"}
    subprocess.run([sys.executable, "-c", alone.format(given)], env=kept, check=True)
    for one in configs:
        assert bits(one.directory) == bits(project / "runs" / one.directory.relative_to(tmp_path / "alone"))
