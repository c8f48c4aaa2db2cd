"""A table of jobs on disk that survives everything: each job a folder with its state, its log and a lock.

A job is run by a process of its own, which holds the lock of the job's folder while it lives (`launch.claimed`). So a
job that says `running` and whose lock is free was killed: it is pending again, and goes on where its training stopped.
Several runners may share the table, on one machine or on many.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict
from tqdm import tqdm

from hssl_nnunet.errors import HSSLError
from hssl_nnunet.files import read_json, write_json
from hssl_nnunet.launch import claimed, in_use
from hssl_nnunet.plan_schema import parse, to_json

State = Literal["pending", "running", "done", "failed"]
STATE_FILE, LOG_FILE = "state.json", "log.txt"
POLL_S = 2.0  # between looks at a job that another runner holds


@dataclass(frozen=True, kw_only=True, slots=True)
class JobState:
    """Where a job stands.

    Attributes:
        state: pending, running, done or failed.
        started: UTC time of its last start, ISO 8601; empty before the first.
        seconds: wall time of its last run, when it has ended.
        attempts: starts so far.
        error: what ended a failed job.
    """

    state: State = "pending"
    started: str = ""
    seconds: float = 0.0
    attempts: int = 0
    error: str = ""

    __pydantic_config__ = ConfigDict(extra="forbid")


class JobTable:
    """The jobs of a benchmark's folder, by name; a name may hold slashes."""

    def __init__(self, folder: Path):
        """Open the table; nothing is read yet.

        Args:
            folder: the benchmark's folder.
        """
        self.root = folder / "jobs"

    def folder(self, name: str) -> Path:
        """Folder of a job."""
        return self.root / name

    def log(self, name: str) -> Path:
        """Log of a job."""
        return self.folder(name) / LOG_FILE

    def state(self, name: str) -> JobState:
        """State of a job; one that was killed is pending."""
        state = self._stored(name)
        killed = state.state == "running" and not in_use(self.folder(name))
        return replace(state, state="pending") if killed else state

    def _stored(self, name: str) -> JobState:
        path = self.folder(name) / STATE_FILE
        return parse(JobState, read_json(path), path) if path.is_file() else JobState()

    def write(self, name: str, state: JobState) -> None:
        """Set the state of a job."""
        write_json(self.folder(name) / STATE_FILE, to_json(state))

    def run(self, name: str, work: Callable[[], None]) -> None:
        """Hold a job while `work` does it: done when it returns, failed when it raises; nothing if it was done before.

        Raises:
            HSSLError: another process runs it.
        """
        with claimed(self.folder(name)):
            # not `state`: a look at the lock from the process that holds it would release it
            before = self._stored(name)
            if before.state == "done":  # by another runner, between this one's look and its start
                return
            begin, started = time.time(), datetime.now(timezone.utc).isoformat(timespec="seconds")
            now = JobState(state="running", started=started, attempts=before.attempts + 1)
            self.write(name, now)
            try:
                work()
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
                self.write(name, replace(now, state="failed", seconds=round(time.time() - begin, 1), error=said))
                raise
            self.write(name, replace(now, state="done", seconds=round(time.time() - begin, 1)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A job and what must be done before it.

    Attributes:
        name: its name in the table.
        needs: names of jobs that it builds on.
        command: how a process runs it.
    """

    name: str
    needs: tuple[str, ...]
    command: tuple[str, ...]


class Runner:
    """Runs jobs of a table, several at a time; a failed one stops none but those that need it."""

    def __init__(self, table: JobTable, workers: int, environment: Mapping[str, str] | None = None):
        """Keep what does not change.

        Args:
            table: the table.
            workers: jobs at a time.
            environment: variables for the jobs' processes, beside this process' own.
        """
        self.table, self.workers = table, workers
        self.environment = {**os.environ, **(environment or {})}

    def run(self, jobs: Sequence[Job]) -> dict[str, JobState]:
        """Run what is not done; what failed in an earlier call is tried again.

        Returns:
            The state of every job: a job whose need failed stays pending.
        """
        waiting = [job for job in jobs if self.table.state(job.name).state != "done"]
        failed: set[str] = set()
        active: dict[Future[bool], Job] = {}
        bar = tqdm(total=len(jobs), initial=len(jobs) - len(waiting), unit="job", disable=not sys.stderr.isatty())
        with ThreadPoolExecutor(self.workers) as pool, bar:
            while waiting or active:
                waiting = [job for job in waiting if not failed.intersection(job.needs)]
                for job in self._ready(waiting)[: self.workers - len(active)]:
                    waiting.remove(job)
                    active[pool.submit(self._one, job)] = job
                if not active:
                    break
                for future in wait(active, timeout=POLL_S, return_when=FIRST_COMPLETED).done:
                    job = active.pop(future)
                    bar.update()
                    if not future.result():
                        failed.add(job.name)
                        tqdm.write(f"failed: {job.name}; see {self.table.log(job.name)}", file=sys.stderr)
        return {job.name: self.table.state(job.name) for job in jobs}

    def _ready(self, waiting: Iterable[Job]) -> list[Job]:
        return [job for job in waiting if all(self.table.state(n).state == "done" for n in job.needs)]

    def _one(self, job: Job) -> bool:
        """Run a job in a process of its own, or wait for the runner that has it; whether it is done."""
        while True:
            while in_use(self.table.folder(job.name)):
                time.sleep(POLL_S)
            if self.table.state(job.name).state == "done":
                return True
            code = self._call(job)
            if not (code and in_use(self.table.folder(job.name))):  # else another runner was first
                break
        state = self.table.state(job.name)
        if code and state.state != "failed":  # the process died without a word: killed, or out of memory
            self.table.write(job.name, replace(state, state="failed", error=f"exit code {code}"))
        return code == 0 and state.state == "done"

    def _call(self, job: Job) -> int:
        log = self.table.log(job.name)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as stream:
            return subprocess.call(job.command, env=self.environment, stdout=stream, stderr=subprocess.STDOUT)


def shard(jobs: Sequence[Job], text: str) -> list[Job]:
    """The jobs of one of n runners that share the work: every n-th of those that nothing needs, and all their needs.

    A job that several shards need is run by the first that comes; the others wait for it.

    Args:
        jobs: every job, needs before what needs them.
        text: `i/n`, i from 1.

    Raises:
        HSSLError: not of this form.
    """
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise HSSLError(f"--shard {text!r}: expected i/n with i from 1 to n, for example 2/8.")
    needed = {name for job in jobs for name in job.needs}
    last = [job for job in jobs if job.name not in needed]
    mine = _with_needs(last[int(index) - 1 :: int(count)], {job.name: job for job in jobs})
    return [job for job in jobs if job.name in mine]


def _with_needs(chosen: Sequence[Job], by_name: Mapping[str, Job]) -> set[str]:
    names = {job.name for job in chosen}
    for job in chosen:
        names |= _with_needs([by_name[name] for name in job.needs], by_name)
    return names
