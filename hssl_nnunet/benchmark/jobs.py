"""A table of jobs on disk that survives everything: each job a folder with its state, its log and a lock.

A job is run by a process of its own, which holds the lock of the job's folder while it lives (`locks.claimed`). So a
job that says `running` and whose lock is free was killed: it is pending again, and goes on where its training stopped.
Several runners may share the table, on one machine or on many.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from hssl_nnunet.errors import HSSLError
from hssl_nnunet.files import read_json, write_json
from hssl_nnunet.locks import claimed, in_use
from hssl_nnunet.typed_json import STRICT, parse, to_json

State = Literal["pending", "running", "done", "failed"]
STATE_FILE, LOG_FILE = "state.json", "log.txt"
POLL_S = 2.0  # between looks at a job that another runner holds
INTERRUPTED = (-signal.SIGINT, 128 + signal.SIGINT, 0xC000013A)  # exit codes after Ctrl-C: POSIX, a shell's, Windows'

Outcome = Literal["done", "failed", "stopped", "held"]  # of one call of a job; held = another runner was first


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

    __pydantic_config__ = STRICT


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

        Ctrl-C leaves it pending.

        Raises:
            HSSLError: another process runs it.
            KeyboardInterrupt: Ctrl-C ended it, whatever error came up on the way out: the exit code tells the runner.
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
            except (Exception, KeyboardInterrupt) as error:
                ended = replace(now, state="pending", seconds=round(time.time() - begin, 1))
                if _from_ctrl_c(error):
                    self.write(name, ended)
                    raise KeyboardInterrupt from error
                self.write(name, replace(ended, state="failed", error=f"{type(error).__name__}: {error}"))
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

        A job that another runner holds keeps no worker waiting: others are started first, and it counts as that runner
        leaves it.

        Returns:
            The state of every job: a job whose need failed stays pending.
        """
        queue, active = _Queue(self.table, jobs), dict[Future[Outcome], Job]()
        bar = tqdm(total=len(jobs), initial=queue.ended, unit="job", disable=not sys.stderr.isatty())
        with ThreadPoolExecutor(self.workers) as pool, bar:
            while True:
                for job in queue.take(self.workers - len(active)):
                    active[pool.submit(self._one, job)] = job
                bar.update(queue.ended - len(active) - bar.n)
                if active:
                    for future in wait(active, timeout=POLL_S, return_when=FIRST_COMPLETED).done:
                        queue.settle(active.pop(future), future.result())
                elif queue.look_again:
                    time.sleep(POLL_S)
                else:
                    break
        return {job.name: self.table.state(job.name) for job in jobs}

    def _one(self, job: Job) -> Outcome:
        """Run a job in a process of its own; how that ended."""
        code, held = self._call(job), in_use(self.table.folder(job.name))
        state = self.table.state(job.name)  # after the lock: another runner may just have ended it
        if state.state == "done":
            return "done"
        if code in INTERRUPTED:
            return "stopped"
        if held:
            return "held"
        if state.state != "failed":  # the process died without a word: killed, or out of memory
            self.table.write(job.name, replace(state, state="failed", error=f"exit code {code}"))
        return "failed"

    def _call(self, job: Job) -> int:
        log = self.table.log(job.name)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as stream:
            return subprocess.call(job.command, env=self.environment, stdout=stream, stderr=subprocess.STDOUT)


class _Queue:
    """The jobs of a runner's call that neither run nor have ended, among runners that share the table."""

    def __init__(self, table: JobTable, jobs: Sequence[Job]):
        self.table, self.total = table, len(jobs)
        self.before = {job.name: table.state(job.name) for job in jobs}
        self.waiting = [job for job in jobs if self.before[job.name].state != "done"]
        self.look_again = False  # whether another runner holds a job, or has just ended one

    @property
    def ended(self) -> int:
        """Jobs that have left the queue."""
        return self.total - len(self.waiting)

    def take(self, most: int) -> list[Job]:
        """Take out up to `most` jobs that can start now, and those that other runners have ended."""
        taken: list[Job] = []
        self.look_again = False
        for job in list(self.waiting):
            if len(taken) == most:
                break
            if not all(self.table.state(name).state == "done" for name in job.needs):
                continue
            held = in_use(self.table.folder(job.name))
            state = self.table.state(job.name)  # after the lock: whoever left it wrote the state before
            failed_since = state.state == "failed" and state != self.before[job.name]
            if state.state == "done" or failed_since:
                self.waiting.remove(job)
                self.look_again = True  # another may need it
                self._tell(job, state.state)
            elif held:
                self.look_again = True
            else:
                self.waiting.remove(job)
                taken.append(job)
        return taken

    def settle(self, job: Job, outcome: Outcome) -> None:
        """Put a job back that another runner was first to start; tell of one that was lost."""
        if outcome == "held":
            self.waiting.append(job)
        self._tell(job, outcome)

    def _tell(self, job: Job, outcome: str) -> None:
        if outcome in ("failed", "stopped"):
            tqdm.write(f"{outcome}: {job.name}; see {self.table.log(job.name)}", file=sys.stderr)


def _from_ctrl_c(error: BaseException | None) -> bool:
    """Whether an error is Ctrl-C, or came up while Ctrl-C ended the work."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


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
    if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise HSSLError(f"--shard {text!r}: expected i/n with i from 1 to n, for example 2/8.")
    needed = {name for job in jobs for name in job.needs}
    last = [job for job in jobs if job.name not in needed]
    return with_needs(last[int(index) - 1 :: int(count)], jobs)


def with_needs(chosen: Sequence[Job], jobs: Collection[Job]) -> list[Job]:
    """Some of the jobs and all that must be done before them, in the order of `jobs`."""
    by_name, names = {job.name: job for job in jobs}, {job.name for job in chosen}
    wanted = list(chosen)
    while wanted:
        needs = set(wanted.pop().needs) - names
        names |= needs
        wanted += [by_name[name] for name in needs]
    return [job for job in jobs if job.name in names]
