"""A SLURM script: the job it is, its text, and its submission.

Nothing is scheduled here: a script is what `sbatch` reads, and can be edited before it is submitted.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hssl_nnunet.errors import HSSLError
from hssl_nnunet.files import written_whole
from hssl_nnunet.paths import ENV_PREPROCESSED, ENV_RAW, ENV_RESULTS

SECONDS_FOR_OTHER_NODES = 60  # to end by themselves once one has; NCCL may wait for it until `ranks.LONGEST_WAIT`
SECONDS_BEFORE_END = 180  # for the signal; a checkpoint is on disk at any time, so nothing has to be written then
VARIABLES = (ENV_RAW, ENV_PREPROCESSED, ENV_RESULTS, "nnUNet_n_proc_DA", "nnUNet_def_n_proc", "nnUNet_compile")
RENDEZVOUS_PORT = "$((10000 + SLURM_JOB_ID % 20000))"  # two jobs of one first node do not meet
SAVED = (
    "saved() {  # of each training the checkpoint that --c goes on from, and a benchmark's predictions and records",
    '  find "$folder" -type d 2>/dev/null | sort | while IFS= read -r d; do',
    '    for name in final latest best; do ls -li "$d/checkpoint_$name.pth" 2>/dev/null && break; done',
    "  done",
    '  ls -lR "$folder/runs" 2>/dev/null',
    "}  # a file that is written anew is another one",
)
WORDS_OF_A_DIRECTIVE = re.compile(r"[\w@%+=:,./-]+", re.ASCII)  # what sbatch reads as it stands


@dataclass(frozen=True, kw_only=True, slots=True)
class Allocation:
    """What is asked of SLURM.

    Attributes:
        options: options of `sbatch`, such as `--partition=gpu` or `--gres=gpu:4`.
        nodes: machines of one task.
        processes: processes on each machine; more than one, or more than one node, start through `torchrun`.
    """

    options: tuple[str, ...] = ()
    nodes: int = 1
    processes: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Script:
    """One job: a command, or an array with one command a task.

    Attributes:
        name: of the job, of its script and of its logs.
        commands: words of the command of each task.
        allocation: what it runs on.
        after: names of scripts that must have ended well before; where one does not, the job is cancelled.
        most_requeues: how often it is queued again when its time is up; None = as long as it takes.
        folders: where each command saves its checkpoints, itself or in folders below; one that has saved none since it
            was started is not queued again, for it would begin anew each time. Empty = it saves none.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    allocation: Allocation = field(default_factory=Allocation)
    after: tuple[str, ...] = ()
    most_requeues: int | None = None
    folders: tuple[Path, ...] = ()


def render(script: Script, folder: Path) -> str:
    """The text of a script.

    Args:
        script: the job.
        folder: where its logs go.
    """
    tasks = [f"set -- {shlex.join(_started(words, script.allocation))}" for words in script.commands]
    for index, results in enumerate(script.folders):
        tasks[index] += f"; folder={shlex.quote(str(results))}"
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {_directive(option)}" for option in _options(script, folder)),
        *(f"export {name}={shlex.quote(os.environ[name])}" for name in VARIABLES if name in os.environ),
        f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"',
        "job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}",
        "set -m  # the command gets a process group of its own, which can be ended as a whole",
        *_requeueing(script),
        *(_meeting() if script.allocation.nodes > 1 else []),
        "case ${SLURM_ARRAY_TASK_ID:-0} in",
        *(f"{index}) {task} ;;" for index, task in enumerate(tasks)),
        "esac",
        *(["before=$(saved)"] if script.folders else []),
        'echo "$*"',
        '"$@" &  # in the background, so that the trap runs at once',
        "pid=$!",
        'wait "$pid"',
    ]
    return "\n".join(lines) + "\n"


def _options(script: Script, folder: Path) -> list[str]:
    array = len(script.commands) > 1
    logs = str(folder).replace("%", "%%")  # sbatch fills in what follows a single one
    return [
        f"--job-name=hssl_{script.name}",
        f"--chdir={Path.cwd()}",  # paths are relative to where they were typed, wherever the script is submitted
        f"--output={logs}/{script.name}_{'%A_%a' if array else '%j'}.log",
        "--open-mode=append",
        "--requeue",
        f"--signal=B:USR1@{SECONDS_BEFORE_END}",
        f"--nodes={script.allocation.nodes}",
        "--ntasks-per-node=1",
        *([f"--array=0-{len(script.commands) - 1}"] if array else []),
        *script.allocation.options,
    ]


def _directive(option: str) -> str:
    """An option as sbatch reads it from a script: not as a shell does, but by double quotes with backslashes inside."""
    if WORDS_OF_A_DIRECTIVE.fullmatch(option):
        return option
    escaped = option.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _requeueing(script: Script) -> list[str]:
    """What happens at USR1, which SLURM sends before the time limit: the job is queued again, and goes on."""
    refusals = []
    if script.most_requeues is not None:
        often = script.most_requeues
        refusals.append((f'"${{SLURM_RESTART_COUNT:-0}}" -ge {often}', f"as {often} times before", ""))
    if script.folders:
        rarely = ", or lower `save_every` in the plans"
        refusals.append(('"$(saved)" = "$before"', "and this start has saved no checkpoint", rarely))
    return [
        *(SAVED if script.folders else []),
        "# SLURM sends USR1 before the time limit: the job is queued again and goes on from where it was",
        "again() {",
        *(line for refusal in refusals for line in _giving_up(*refusal)),
        '  echo "Time is nearly up: queued again."',
        '  kill -TERM -- "-$pid"; wait "$pid"',
        '  scontrol requeue "${job:-$SLURM_JOB_ID}"',
        "}",
        "trap again USR1",
    ]


def _giving_up(condition: str, why: str, remedy: str) -> list[str]:
    """Where it would never end: it is not queued again."""
    said = f"Time is nearly up, {why}: not queued again. What is done stays; submit with more --time{remedy}."
    return [
        f"  if [ {condition} ]; then",
        f"    echo {shlex.quote(said)}",
        '    kill -TERM -- "-$pid"; wait "$pid"',
        "    exit 1",
        "  fi",
    ]


def _meeting() -> list[str]:
    """Where the nodes of a job meet, and the processors that `srun` would not hand on."""
    return [
        'export HSSL_HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        f"export HSSL_PORT={RENDEZVOUS_PORT}",
        '[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK',
    ]


def _started(words: Sequence[str], alloc: Allocation) -> list[str]:
    """The command, through `torchrun` where it is more than one process."""
    if alloc.nodes == alloc.processes == 1:
        return list(words)
    start = ["torchrun", f"--nproc_per_node={alloc.processes}"]
    tail = [str(Path(sys.executable).parent / words[0]), *words[1:]]
    if alloc.nodes == 1:
        return [*start, "--standalone", *tail]
    # the rank of a node and the first host are known inside the step alone
    where = f'--nnodes={alloc.nodes} --node_rank="$SLURM_NODEID" --master_addr="$HSSL_HEAD" --master_port="$HSSL_PORT"'
    step = f"exec {shlex.join(start)} {where} {shlex.join(tail)}"
    return ["srun", f"--wait={SECONDS_FOR_OTHER_NODES}", "bash", "-c", step]


def write_scripts(scripts: Sequence[Script], folder: Path) -> list[Path]:
    """Write scripts and, where there are several, `submit.sh` with their order; earlier ones are replaced.

    Raises:
        HSSLError: the folder cannot be made.
    """
    folder = folder.resolve()
    paths = []
    for script in scripts:
        path = folder / f"{script.name}.sbatch"
        with written_whole(path) as temporary:
            temporary.write_text(render(script, folder))
        paths.append(path)
    if len(scripts) > 1:
        with written_whole(folder / "submit.sh") as temporary:
            temporary.write_text(_in_order(scripts, folder))
    return paths


def _in_order(scripts: Sequence[Script], folder: Path) -> str:
    lines = ["#!/bin/bash", "set -e"]
    jobs = {script.name: f"job{i}" for i, script in enumerate(scripts)}  # a name may hold what a variable's may not
    for script in scripts:
        words = ["sbatch", "--parsable", *_after([f"${{{jobs[name]}%%;*}}" for name in script.after])]
        lines.append(f"{jobs[script.name]}=$({' '.join(words)} {shlex.quote(str(folder / f'{script.name}.sbatch'))})")
        lines.append(f'echo {shlex.quote(script.name)}: "${jobs[script.name]}"')
    return "\n".join(lines) + "\n"


def _after(ids: Sequence[str]) -> list[str]:
    """Options of a job that waits for others; when one of them fails it is cancelled, else it would wait for ever."""
    return [f"--dependency=afterok:{':'.join(ids)}", "--kill-on-invalid-dep=yes"] if ids else []


def submit(scripts: Sequence[Script], paths: Sequence[Path]) -> dict[str, str]:
    """Submit scripts in order, each after those it waits for.

    Returns:
        Name -> id of the job.

    Raises:
        HSSLError: there is no `sbatch`, or it refuses a script.
    """
    if shutil.which("sbatch") is None:
        raise HSSLError("sbatch was not found. Submit on a machine of the cluster, or leave --submit away.")
    ids: dict[str, str] = {}
    for script, path in zip(scripts, paths, strict=True):
        after = _after([ids[name] for name in script.after])
        done = subprocess.run(["sbatch", "--parsable", *after, str(path)], capture_output=True, text=True, check=False)
        if done.returncode:
            queued = f" Already queued: {', '.join(ids.values())}." if ids else ""
            raise HSSLError(f"sbatch refused {path}: {done.stderr.strip()}.{queued} Repair it, or change --sbatch.")
        ids[script.name] = done.stdout.strip().partition(";")[0]
    return ids
