"""The job that a process belongs to, read from its environment alone."""

from __future__ import annotations

import pytest

from potstill.devices import jobs, launch
from potstill.errors import Interrupted, MachineError, PotstillError, TrainingStopped


def slurm(task: int, **others: str) -> dict[str, str]:
    """What srun gives one of 16 tasks on two machines with eight GPUs each."""
    return {
        "SLURM_JOB_ID": "4711",
        "SLURM_STEP_ID": "0",
        "SLURM_JOB_NODELIST": "gpu[03-04]",
        "SLURM_STEP_NODELIST": "gpu[03-04]",
        "SLURM_NTASKS": "16",
        "SLURM_PROCID": str(task),
        "SLURM_LOCALID": str(task % 8),
        "SLURM_NODEID": str(task // 8),
    } | others


def adopted(environment: dict[str, str]) -> dict[str, str]:
    jobs.adopt(environment)
    return environment


def test_the_tasks_of_a_slurm_job_meet_at_its_first_machine():
    tasks = [adopted(slurm(task)) for task in range(16)]
    assert [int(task["RANK"]) for task in tasks] == list(range(16))
    assert [int(task["LOCAL_RANK"]) for task in tasks] == [*range(8), *range(8)]
    places = {(task["MASTER_ADDR"], task["MASTER_PORT"], task["WORLD_SIZE"]) for task in tasks}
    assert places == {("gpu03", "24711", "16")}
    assert [jobs.number(task) for task in tasks] == list(range(16))
    assert {jobs.processes(task) for task in tasks} == {16}


def test_a_step_on_some_of_a_jobs_machines_meets_at_the_first_of_them():
    task = adopted(slurm(1, SLURM_JOB_NODELIST="gpu[01-09]", SLURM_STEP_NODELIST="gpu07,gpu09"))
    assert task["MASTER_ADDR"] == "gpu07"


def test_a_list_of_the_job_alone_is_enough():
    environment = slurm(1)
    del environment["SLURM_STEP_NODELIST"]
    assert adopted(environment)["MASTER_ADDR"] == "gpu03"


def test_without_a_number_on_its_machine_a_task_is_the_first_there():
    environment = slurm(1)
    del environment["SLURM_LOCALID"]
    assert adopted(environment)["LOCAL_RANK"] == "0"


def test_two_jobs_of_one_machine_meet_at_different_ports():
    ports = {int(adopted(slurm(0, SLURM_JOB_ID=job))["MASTER_PORT"]) for job in ("4711", "4712", "24713")}
    assert len(ports) == 3
    assert all(20000 <= port < 40000 for port in ports)


def test_an_address_and_port_of_ones_own_stay():
    task = adopted(slurm(3, MASTER_ADDR="10.0.0.7", MASTER_PORT="29512"))
    assert (task["MASTER_ADDR"], task["MASTER_PORT"]) == ("10.0.0.7", "29512")


@pytest.mark.parametrize(
    ("names", "first"),
    [
        ("gpu03", "gpu03"),
        ("gpu[03-07,12],cpu1", "gpu03"),
        ("gpu[12,03-07]", "gpu12"),
        ("node1,node2", "node1"),
        ("rack[2-4]-gpu", "rack2-gpu"),
        ("a-1.cluster.org,b", "a-1.cluster.org"),
        ("", ""),
    ],
)
def test_the_first_machine_of_slurms_list(names, first):
    assert jobs.first_host(names) == first


def test_a_list_that_cannot_be_read_is_refused_with_a_way_out():
    with pytest.raises(MachineError, match="Export MASTER_ADDR"):
        jobs.adopt(slurm(0, SLURM_STEP_NODELIST="", SLURM_JOB_NODELIST=""))


def test_torchruns_words_come_before_slurms():
    """torchrun inside a SLURM task: a task a machine, and torchrun's processes in it."""
    environment = slurm(1, RANK="9", WORLD_SIZE="12", LOCAL_RANK="1", MASTER_ADDR="m", MASTER_PORT="1")
    assert adopted(dict(environment)) == environment
    assert (jobs.processes(environment), jobs.number(environment)) == (12, 9)


def test_a_batch_script_is_alone_until_it_calls_srun():
    """It sees the number of its job's tasks, and has started none of them."""
    environment = slurm(0)
    del environment["SLURM_STEP_ID"], environment["SLURM_STEP_NODELIST"]
    assert jobs.processes(environment) is None
    assert "RANK" not in adopted(environment)


@pytest.mark.parametrize(
    "environment", [{}, {"SLURM_NTASKS": "1", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0"}]
)
def test_a_process_that_nobody_started_with_others_is_alone(environment):
    assert jobs.processes(environment) is None
    assert jobs.number(environment) == 0


def reasons(folder, monkeypatch, *errors: tuple[int, PotstillError, bool]) -> PotstillError | None:
    """What a run ends with whose processes left these errors, in this order."""
    monkeypatch.setenv(jobs.LAUNCHED, str(folder))
    for process, error, echo in errors:
        monkeypatch.setattr(jobs, "number", lambda process=process: process)
        jobs.leave_reason(error, echo=echo)
    return jobs.reason(folder)


def test_a_run_ends_with_the_first_reason_that_is_not_an_echo(tmp_path, monkeypatch):
    gone, cause = (
        MachineError("another process has ended."),
        MachineError("the disk is full.", fix="Free it."),
    )
    error = reasons(
        tmp_path, monkeypatch, (0, gone, True), (2, cause, False), (1, TrainingStopped("nan"), False)
    )
    assert error is not None
    assert error.as_dict() == cause.as_dict()


def test_an_interruption_is_one_to_whoever_started_the_processes(tmp_path, monkeypatch):
    stop = Interrupted("stopped.", signal_number=15, fix="Go on.")
    error = reasons(tmp_path, monkeypatch, (0, stop, False))
    assert isinstance(error, Interrupted)
    assert error.as_dict() == stop.as_dict()


def test_processes_that_only_saw_others_go_give_no_reason(tmp_path, monkeypatch):
    assert reasons(tmp_path, monkeypatch, (0, MachineError("gone."), True)) is None


@pytest.mark.parametrize(
    ("codes", "echoes", "blamed"),
    [
        ({0: 3, 1: -9}, [0], "process 1 ended by SIGKILL"),
        ({0: -15, 1: -9}, [], "process 1 ended by SIGKILL"),
        ({0: 3, 1: -15, 2: -11}, [0], "process 2 ended by SIGSEGV"),
        ({0: 3}, [0], "process 0 ended with exit code 3"),
    ],
)
def test_a_process_that_was_killed_is_told_from_those_that_only_noticed(tmp_path, codes, echoes, blamed):
    for number in echoes:
        (tmp_path / f"{number}.json").write_text("{}")
    assert launch._without_a_word(codes, tmp_path).message.startswith(blamed)
