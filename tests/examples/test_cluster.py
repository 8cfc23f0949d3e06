"""The jobs for clusters: what they start is what torchrun, SLURM and potstill take."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from builders.many import Left, prepare
from builders.scripts import ROOT

CLUSTER = ROOT / "examples/cluster"
RECORD = '#!/usr/bin/env bash\nprintf "%s\\n" "$@" > "$RECORD"\nenv > "$RECORD.env"\n'


def script(place: Path, text: str) -> Path:
    place.write_text(text)
    place.chmod(0o755)
    return place


def started(folder: Path, name: str, program: str, *arguments: str, **environment: str) -> tuple[Any, Any]:
    """The arguments and the environment that a script of the cluster gives the program that it starts."""
    script(folder / program, RECORD)
    words = {"PATH": f"{folder}:{os.environ['PATH']}", "RECORD": str(folder / "record"), **environment}
    subprocess.run(["bash", CLUSTER / name, *arguments], env=words, check=True)
    lines = (folder / "record.env").read_text().splitlines()
    said = dict(line.split("=", 1) for line in lines if "=" in line)
    return (folder / "record").read_text().splitlines(), said


def torchrun(arguments: list[str]) -> Any:
    """What torchrun reads of its arguments."""
    from torch.distributed.run import get_args_parser

    return get_args_parser().parse_args(arguments)


def potstill(arguments: list[str]) -> dict[str, Any]:
    """What `potstill` reads of its arguments, with the verb."""
    from typer.main import get_command

    from potstill.cli import app

    group: Any = get_command(app)
    with group.make_context("potstill", list(arguments), resilient_parsing=False) as context:
        verb, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])
        return {"verb": verb, **command.make_context(verb, rest, parent=context).params}


@pytest.mark.parametrize("name", sorted(path.name for path in CLUSTER.glob("*.sh")))
def test_a_script_is_a_shells_and_fails_without_a_recipe(name, tmp_path):
    subprocess.run(["bash", "-n", CLUSTER / name], check=True)
    environment = {"PATH": os.environ["PATH"], "HEAD": "gpu-01"}
    failed = subprocess.run(["bash", CLUSTER / name], env=environment, capture_output=True, text=True)
    assert failed.returncode
    assert "a recipe" in failed.stderr


def test_torchrun_on_two_machines_is_given_what_it_takes(tmp_path):
    arguments, _ = started(
        tmp_path, "two-machines.sh", "torchrun", "a recipe.yaml", "distill.epochs=2", HEAD="gpu-01", GPUS="4"
    )
    read = torchrun(arguments)
    assert (read.nnodes, read.nproc_per_node) == ("2", "4")
    assert (read.rdzv_backend, read.rdzv_endpoint, read.rdzv_id) == ("c10d", "gpu-01:29500", "potstill")
    assert (read.module, read.training_script, read.max_restarts) == (True, "potstill", 0)
    assert potstill(read.training_script_args) == {
        "verb": "run", "recipe": Path("a recipe.yaml"), "overrides": ["distill.epochs=2"], "as_json": False, "until": None, "yes": False,
    }  # fmt: skip


def test_torchrun_without_the_first_machines_name_is_refused(tmp_path):
    environment = {"PATH": os.environ["PATH"]}
    command = ["bash", CLUSTER / "two-machines.sh", "recipe.yaml"]
    failed = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert failed.returncode
    assert "HEAD: name of the first machine" in failed.stderr


def test_slurm_starts_a_task_for_each_gpu(tmp_path):
    arguments, environment = started(
        tmp_path, "slurm.sh", "srun", "recipe.yaml", "distill.epochs=2", SLURM_CPUS_PER_TASK="6"
    )
    assert arguments[:3] == ["--kill-on-bad-exit=1", "potstill", "run"]
    assert potstill(arguments[2:])["overrides"] == ["distill.epochs=2"]
    assert environment["OMP_NUM_THREADS"] == environment["SRUN_CPUS_PER_TASK"] == "6"
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", (CLUSTER / "slurm.sh").read_text(), re.M))
    assert options["ntasks-per-node"] == options["gpus-per-node"] == "8"
    assert options["nodes"] == "2"
    assert re.fullmatch(r"TERM@\d+", options["signal"])


def test_kubernetes_pods_find_each_other_and_start_torchrun():
    service, job = yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text())
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    program, *arguments = container["command"]
    assert program == "torchrun"
    read = torchrun(arguments)
    assert int(read.nnodes) == spec["completions"] == spec["parallelism"]
    assert int(read.nproc_per_node) == container["resources"]["limits"]["nvidia.com/gpu"]
    host, port = read.rdzv_endpoint.split(":")
    name, subdomain = host.split(".")
    assert spec["completionMode"] == "Indexed"  # which names the pods
    assert name == f"{job['metadata']['name']}-0"
    assert subdomain == pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert service["spec"]["clusterIP"] == "None"
    assert [one["port"] for one in service["spec"]["ports"]] == [int(port)]
    assert potstill(read.training_script_args)["verb"] == "run"
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes


SRUN = """\
#!/usr/bin/env bash
# Two tasks on two machines that are this one.
shift
export SLURM_JOB_ID={port} SLURM_STEP_ID=0 SLURM_NTASKS=2 SLURM_LOCALID=0 SLURM_STEP_NODELIST=localhost
SLURM_PROCID=1 "$@" & other=$!
SLURM_PROCID=0 "$@" || exit $?
wait $other
"""
PROGRAM = '#!/usr/bin/env bash\nexec {python} -m potstill "$@"\n'


@pytest.fixture
def cluster(tmp_path):
    """A folder with a recipe, programs in front of the machine's own, and the environment that holds both."""
    prepare(tmp_path)
    programs = tmp_path / "programs"
    programs.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script(programs / "potstill", PROGRAM.format(python=sys.executable))
    script(
        programs / "torchrun",
        PROGRAM.format(python=sys.executable).replace("potstill", "torch.distributed.run"),
    )
    script(programs / "srun", SRUN.format(port=port - 20000))
    return os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1", "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1", "SLURM_CPUS_PER_TASK": "1", "PORT": str(port),
    }  # fmt: skip


@pytest.mark.prove
def test_the_tasks_of_a_slurm_job_train_together(tmp_path, cluster):
    """slurm.sh with an srun that starts its two tasks here; a batch script ends as its tasks do."""
    command = ["bash", CLUSTER / "slurm.sh", "many.yaml"]
    done = subprocess.run(command, cwd=tmp_path, env=cluster, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "2 processes, sharding ddp" in done.stderr
    assert len(Left(tmp_path / "runs/many").steps) == 10


@pytest.mark.prove
def test_torchrun_on_two_machines_trains_together(tmp_path, cluster):
    """two-machines.sh, started twice on this one."""
    command = ["bash", CLUSTER / "two-machines.sh", "many.yaml"]
    environment = cluster | {"HEAD": "localhost", "GPUS": "1"}
    both = [
        subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert any("2 processes, sharding ddp" in words for words in said)
    assert len(Left(tmp_path / "runs/many").steps) == 10
