"""The job table: real processes that end well, fail, are killed, and are shared by two runners."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hssl_nnunet.benchmark import jobs, run
from hssl_nnunet.benchmark.jobs import Job, JobState, JobTable, Runner, shard
from hssl_nnunet.benchmark.run import shared_threads
from hssl_nnunet.errors import HSSLError

# a job that appends its name to a file; `fail` raises the first time, `kill` dies the first time, `slow` takes a while,
# `gate` waits for the file `open`, `unwind` meets another error while Ctrl-C ends it
CODE = """
import os, signal, sys, time
from pathlib import Path
from hssl_nnunet.benchmark.jobs import JobTable
folder, name = Path(sys.argv[1]), sys.argv[2]
def work():
    first = not (folder / f"tried_{name.replace('/', '_')}").exists()
    (folder / f"tried_{name.replace('/', '_')}").touch()
    print("hello from", name)
    if name.startswith("slow"): time.sleep(1)
    if name.startswith("hang"): time.sleep(60)
    if name.startswith("unwind"):
        try: time.sleep(60)
        finally: raise OSError("a worker has died")
    while name.startswith("gate") and not (folder / "open").exists(): time.sleep(0.02)
    if "fail" in name and first: raise ValueError("no luck")
    if name.startswith("kill") and first: os.kill(os.getpid(), signal.SIGKILL)
    with (folder / "order").open("a") as file: file.write(name + "\\n")
JobTable(folder).run(name, work)
"""
# a runner of jobs without needs, in a process of its own
RUNNER = """
import sys
from pathlib import Path
from hssl_nnunet.benchmark.jobs import Job, JobTable, Runner
folder, code, *names = sys.argv[1:]
jobs = [Job(name=name, needs=(), command=(sys.executable, "-c", code, folder, name)) for name in names]
Runner(JobTable(Path(folder)), 2).run(jobs)
"""
PATIENCE_S = 120  # the machine may be slow


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "POLL_S", 0.1)


def job(folder: Path, name: str, *needs: str) -> Job:
    return Job(name=name, needs=needs, command=(sys.executable, "-c", CODE, str(folder), name))


def order(folder: Path) -> list[str]:
    path = folder / "order"
    return path.read_text().split() if path.is_file() else []


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def begin(folder: Path, name: str) -> subprocess.Popen[bytes]:
    """A job that another runner holds: its process, once it runs."""
    process = subprocess.Popen(job(folder, name).command)
    wait_until(lambda: JobTable(folder).state(name).state == "running")
    return process


def test_jobs_run_after_their_needs_and_only_once(tmp_path: Path) -> None:
    table = JobTable(tmp_path)
    work = [job(tmp_path, "c/x", "a", "b"), job(tmp_path, "b", "a"), job(tmp_path, "a")]
    assert [table.state(j.name).state for j in work] == ["pending"] * 3
    states = Runner(table, 2).run(work)
    assert order(tmp_path) == ["a", "b", "c/x"]
    assert {s.state for s in states.values()} == {"done"} and all(s.seconds >= 0 for s in states.values())
    assert "hello from c/x" in table.log("c/x").read_text()
    Runner(table, 2).run(work)
    assert order(tmp_path) == ["a", "b", "c/x"]


@pytest.mark.parametrize("bad", ["fail", "kill"])
def test_a_failure_stops_nobody_else_and_is_tried_again(tmp_path: Path, bad: str) -> None:
    table = JobTable(tmp_path)
    work = [job(tmp_path, bad), job(tmp_path, "after", bad), job(tmp_path, "other")]
    states = Runner(table, 1).run(work)
    assert {n: s.state for n, s in states.items()} == {bad: "failed", "after": "pending", "other": "done"}
    assert states[bad].error == ("ValueError: no luck" if bad == "fail" else "exit code -9")
    states = Runner(table, 1).run(work)
    assert {s.state for s in states.values()} == {"done"}
    assert states[bad].attempts == 2 and order(tmp_path) == ["other", bad, "after"]


def test_jobs_run_side_by_side(tmp_path: Path) -> None:
    started_s = time.monotonic()
    Runner(JobTable(tmp_path), 3).run([job(tmp_path, f"slow{i}") for i in range(3)])
    together = time.monotonic() - started_s
    assert len(order(tmp_path)) == 3
    started = [JobTable(tmp_path).state(f"slow{i}").seconds for i in range(3)]
    assert together < sum(started) + 30  # no deadlock; the machine may be slow


def test_a_job_whose_process_is_killed_is_pending_again(tmp_path: Path) -> None:
    table = JobTable(tmp_path)
    process = begin(tmp_path, "hang")
    assert table.state("hang").state == "running"  # a look does not take the lock away
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert table.state("hang").state == "pending"


def test_two_runners_share_a_table(tmp_path: Path) -> None:
    work = [job(tmp_path, "slow"), job(tmp_path, "left", "slow"), job(tmp_path, "right", "slow")]
    runners = [threading.Thread(target=Runner(JobTable(tmp_path), 1).run, args=(work,)) for _ in range(2)]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join()
    done = order(tmp_path)
    assert done[0] == "slow" and sorted(done) == ["left", "right", "slow"]


def test_jobs_that_another_runner_holds_come_last_and_keep_no_worker_waiting(tmp_path: Path) -> None:
    other, table = begin(tmp_path, "gate"), JobTable(tmp_path)
    work = [job(tmp_path, "gate"), job(tmp_path, "after", "gate"), job(tmp_path, "free1"), job(tmp_path, "free2")]
    runner = threading.Thread(target=Runner(table, 1).run, args=(work,))
    runner.start()
    wait_until(lambda: order(tmp_path) == ["free1", "free2"])
    assert table.state("gate").state == "running" and runner.is_alive()
    (tmp_path / "open").touch()
    runner.join(PATIENCE_S)
    assert other.wait() == 0 and order(tmp_path) == ["free1", "free2", "gate", "after"]
    assert table.state("gate").attempts == 1


def test_a_job_that_failed_under_another_runner_is_not_run_again_in_this_call(tmp_path: Path) -> None:
    other, table, ended = begin(tmp_path, "gate_fail"), JobTable(tmp_path), []
    work = [job(tmp_path, "gate_fail"), job(tmp_path, "after", "gate_fail"), job(tmp_path, "free")]
    runner = threading.Thread(target=lambda: ended.append(Runner(table, 2).run(work)))
    runner.start()
    wait_until(lambda: order(tmp_path) == ["free"])
    (tmp_path / "open").touch()
    runner.join(PATIENCE_S)
    assert other.wait() == 1 and order(tmp_path) == ["free"]
    assert {n: (s.state, s.attempts) for n, s in ended[0].items()} == {
        "gate_fail": ("failed", 1),
        "after": ("pending", 0),
        "free": ("done", 1),
    }
    Runner(table, 2).run(work)
    assert order(tmp_path) == ["free", "gate_fail", "after"] and table.state("gate_fail").attempts == 2


def test_a_job_that_fails_between_a_look_at_its_state_and_one_at_its_lock_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, looks = JobTable(tmp_path), []
    running = JobState(state="running", attempts=1)
    table.write("fail", running)

    def held_once(folder: Path) -> bool:
        """The other runner holds the job as this one begins, and has let go at the next look."""
        looks.append(folder)
        if len(looks) == 2:
            table.write("fail", replace(running, state="failed"))
        return len(looks) == 1

    monkeypatch.setattr(jobs, "in_use", held_once)
    states = Runner(table, 1).run([job(tmp_path, "fail")])
    assert (states["fail"].state, states["fail"].attempts) == ("failed", 1) and len(looks) > 1


def test_a_job_that_another_runner_was_killed_on_is_taken_over(tmp_path: Path) -> None:
    other, table = begin(tmp_path, "gate"), JobTable(tmp_path)
    runner = threading.Thread(target=Runner(table, 1).run, args=([job(tmp_path, "gate"), job(tmp_path, "free")],))
    runner.start()
    wait_until(lambda: order(tmp_path) == ["free"])
    (tmp_path / "open").touch()
    other.kill()
    other.wait()
    runner.join(PATIENCE_S)
    assert not runner.is_alive() and table.state("gate").state == "done"


def test_many_runners_run_every_job_once(tmp_path: Path) -> None:
    names = [f"job{i}" for i in range(4)]
    work = [job(tmp_path, "first"), *(job(tmp_path, name, "first") for name in names)]
    runners = [threading.Thread(target=Runner(JobTable(tmp_path), 2).run, args=(work,)) for _ in range(3)]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join()
    assert sorted(order(tmp_path)) == ["first", *names]
    assert {(s.state, s.attempts) for s in map(JobTable(tmp_path).state, ["first", *names])} == {("done", 1)}


@pytest.mark.parametrize("name", ["hang", "unwind"])
def test_ctrl_c_leaves_a_job_pending(tmp_path: Path, name: str) -> None:
    process, table = begin(tmp_path, name), JobTable(tmp_path)
    wait_until((tmp_path / f"tried_{name}").exists)
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE_S) == -signal.SIGINT
    state = table.state(name)
    assert (state.state, state.attempts, state.error) == ("pending", 1, "")


def test_ctrl_c_at_a_runner_leaves_its_jobs_pending_and_starts_no_more(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RUNNER, str(tmp_path), CODE, "hang", "unwind", "free"]
    runner, table = subprocess.Popen(command, start_new_session=True), JobTable(tmp_path)
    for name in ("hang", "unwind"):
        wait_until((tmp_path / f"tried_{name}").exists)
    os.killpg(runner.pid, signal.SIGINT)  # as a terminal does
    assert runner.wait(PATIENCE_S) == -signal.SIGINT
    states = {name: table.state(name) for name in ("hang", "unwind", "free")}
    assert {n: (s.state, s.attempts) for n, s in states.items()} == {
        "hang": ("pending", 1),
        "unwind": ("pending", 1),
        "free": ("pending", 0),
    }


def test_ctrl_c_ends_a_runner_that_waits_for_anothers_job(tmp_path: Path) -> None:
    other, table = begin(tmp_path, "gate"), JobTable(tmp_path)
    runner = subprocess.Popen([sys.executable, "-c", RUNNER, str(tmp_path), CODE, "gate", "free"])
    wait_until(lambda: order(tmp_path) == ["free"])
    runner.send_signal(signal.SIGINT)
    assert runner.wait(PATIENCE_S) == -signal.SIGINT
    assert table.state("gate").state == "running" and other.poll() is None
    (tmp_path / "open").touch()
    assert other.wait(PATIENCE_S) == 0 and table.state("gate").state == "done"


def test_shards_share_the_work_and_their_needs(tmp_path: Path) -> None:
    work = [job(tmp_path, "p"), job(tmp_path, "q"), *(job(tmp_path, f"f{i}", "pq"[i % 2]) for i in range(5))]
    names = [{j.name for j in shard(work, f"{i}/2")} for i in (1, 2)]
    assert names == [{"p", "f0", "f2", "f4"}, {"q", "f1", "f3"}]
    assert shard(work, "1/1") == work


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", "²/8"])
def test_a_wrong_shard_is_refused(text: str) -> None:
    with pytest.raises(HSSLError, match="i/n"):
        shard([], text)


@pytest.mark.parametrize(("cores", "workers", "threads"), [(8, 2, "4"), (2, 2, "1"), (2, 5, "1"), (1, 1, "1")])
def test_jobs_share_the_cores(monkeypatch: pytest.MonkeyPatch, cores: int, workers: int, threads: str) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(run, "available_cpus", lambda: cores)
    assert shared_threads(workers) == {"OMP_NUM_THREADS": threads}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")  # the user's word counts
    assert shared_threads(workers) == {}
