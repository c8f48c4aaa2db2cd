"""The job table: real processes that end well, fail, are killed, and are shared by two runners."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hssl_nnunet.benchmark import jobs
from hssl_nnunet.benchmark.jobs import Job, JobTable, Runner, shard
from hssl_nnunet.benchmark.run import shared_threads
from hssl_nnunet.errors import HSSLError

# a job that appends its name to a file; `fail` raises the first time, `kill` dies the first time, `slow` takes a while
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
    if name.startswith("fail") and first: raise ValueError("no luck")
    if name.startswith("kill") and first: os.kill(os.getpid(), signal.SIGKILL)
    with (folder / "order").open("a") as file: file.write(name + "\\n")
JobTable(folder).run(name, work)
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "POLL_S", 0.1)


def job(folder: Path, name: str, *needs: str) -> Job:
    return Job(name=name, needs=needs, command=(sys.executable, "-c", CODE, str(folder), name))


def order(folder: Path) -> list[str]:
    path = folder / "order"
    return path.read_text().split() if path.is_file() else []


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
    begin = time.monotonic()
    Runner(JobTable(tmp_path), 3).run([job(tmp_path, f"slow{i}") for i in range(3)])
    together = time.monotonic() - begin
    assert len(order(tmp_path)) == 3
    started = [JobTable(tmp_path).state(f"slow{i}").seconds for i in range(3)]
    assert together < sum(started) + 30  # no deadlock; the machine may be slow


def test_a_job_whose_process_is_killed_is_pending_again(tmp_path: Path) -> None:
    table = JobTable(tmp_path)
    process = subprocess.Popen(job(tmp_path, "hang").command)
    deadline = time.monotonic() + 60
    while table.state("hang").state != "running" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert table.state("hang").state == "running"
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


def test_shards_share_the_work_and_their_needs(tmp_path: Path) -> None:
    work = [job(tmp_path, "p"), job(tmp_path, "q"), *(job(tmp_path, f"f{i}", "pq"[i % 2]) for i in range(5))]
    names = [{j.name for j in shard(work, f"{i}/2")} for i in (1, 2)]
    assert names == [{"p", "f0", "f2", "f4"}, {"q", "f1", "f3"}]
    assert shard(work, "1/1") == work


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_a_wrong_shard_is_refused(text: str) -> None:
    with pytest.raises(HSSLError, match="i/n"):
        shard([], text)


@pytest.mark.parametrize(("cores", "workers", "threads"), [(8, 2, "4"), (2, 2, "1"), (2, 5, "1"), (None, 1, "1")])
def test_jobs_share_the_cores(monkeypatch: pytest.MonkeyPatch, cores: int | None, workers: int, threads: str) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert shared_threads(workers) == {"OMP_NUM_THREADS": threads}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")  # the user's word counts
    assert shared_threads(workers) == {}
