"""The main job on real data, stage by stage: wall time, peak memory and held-out Dice into one JSON.

    python benchmarks/main_job.py --data DIR --work DIR [--out benchmarks/results/main_job.json]

DIR holds MSD folders Task04_Hippocampus, Task51_SarcomaCT, Task52_SarcomaMR, Task53_SarcomaPET, Task54_CineLV and the
nnU-Net raw folder Dataset055_BrainMRUnlabelled. Every stage is a command of `hssl`, typed as a user types it. A stage
that is in the JSON already is skipped, so that the script can be stopped and started again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from hssl_nnunet.benchmark.intervals import crossed_interval
from hssl_nnunet.files import read_json, write_json
from hssl_nnunet.versions import versions

TASKS = ("Task04_Hippocampus", "Task51_SarcomaCT", "Task52_SarcomaMR", "Task53_SarcomaPET", "Task54_CineLV")
UNLABELLED = "Dataset055_BrainMRUnlabelled"
TARGETS = {"Dataset004_Hippocampus": (40, 9), "Dataset053_SarcomaPET": (9, 5)}  # test cases, labelled training cases
SEEDS = (0, 1, 2)  # one fold each: another subset of labelled cases, the same test cases
PLANS = "nnUNetCPUPlans"
CORPUS = "Dataset900_Corpus"


def main() -> None:
    args = arguments()
    job = Job(args.work.resolve(), args.data, args.out)
    prepare(job, args.data)
    pretrain(job, args.epochs)
    with ThreadPoolExecutor(args.jobs) as pool:
        for target in TARGETS:
            finetune(job, target, args.finetuning_epochs, pool)
    job.result["dice"] = {target: dice(job, target) for target in TARGETS}
    job.save()
    print(json.dumps(job.result["dice"], indent=2))


class Job:
    """Runs commands, measures them and keeps what was measured."""

    def __init__(self, work: Path, data: Path, out: Path):
        self.work, self.data, self.out = work, data, out
        self.result = read_json(out) if out.is_file() else {"about": about(), "stages": {}}
        self.environment = {
            **os.environ,
            **{f"nnUNet_{n}": str(work / f"nnUNet_{n}") for n in ("raw", "preprocessed", "results")},
        }

    def folder(self, name: str) -> Path:
        return self.work / f"nnUNet_{name}"

    def stage(self, name: str, *command: str) -> None:
        if name in self.result["stages"]:
            return
        print(f"$ {shlex.join(command)}", flush=True)
        log = self.work / "logs" / f"{name}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        begin = time.time()
        with log.open("w") as stream:
            process = subprocess.Popen(command, env=self.environment, stdout=stream, stderr=subprocess.STDOUT)
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            print(f"{name} failed with exit code {process.returncode}; see {log}", flush=True)
            os._exit(1)  # from whatever thread; what is done is in the JSON
        self.result["stages"][name] = {
            "command": shlex.join(command).replace(str(self.work), "$WORK").replace(str(self.data), "$DATA"),
            "wall_s": round(time.time() - begin, 1),
            "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
            "peak_gib": round(usage.ru_maxrss / 2**20, 2),  # of the largest process
        }
        self.save()

    def save(self) -> None:
        write_json(self.out, self.result)


def prepare(job: Job, data: Path) -> None:
    """Convert, preprocess, split, and build the corpus without the targets' test patients."""
    if not (job.folder("raw") / UNLABELLED).exists():
        shutil.copytree(data / UNLABELLED, job.folder("raw") / UNLABELLED)
    for task in TASKS:
        job.stage(f"convert_{task}", "hssl", "convert_msd", "-i", str(data / task))
    job.stage("plan_and_preprocess", "hssl", *"plan_and_preprocess -d 4 51 52 53 54 55 --preset cpu".split())
    excluded = [line for target in TARGETS for line in write_splits(job, target)]
    exclude = job.work / "exclude.txt"
    exclude.write_text("\n".join(excluded) + "\n")
    regex = ["--patient_regex", "54=(.*)_[^_]*"]
    ids = "-d 4 51 52 53 54 55 -o 900".split()
    job.stage("corpus", "hssl", "corpus", *ids, "-p", PLANS, "--exclude", str(exclude), *regex)


def write_splits(job: Job, target: str) -> list[str]:
    """Fold k: the labelled cases of seed k, and as validation the test cases, which are the same in every fold.

    The fold after the last seed's is for development: the first seed's labelled cases, validated on other cases.
    """
    folder = job.folder("preprocessed") / target
    cases = sorted(p.name.split(".")[0] for p in (folder / "gt_segmentations").iterdir())
    num_test, num_train = TARGETS[target]
    test = sorted(np.random.default_rng(2021).choice(cases, num_test, replace=False).tolist())
    rest = [case for case in cases if case not in test]
    train = [sorted(np.random.default_rng(seed).choice(rest, num_train, replace=False).tolist()) for seed in SEEDS]
    development = {"train": train[0], "val": [case for case in rest if case not in train[0]][:num_test]}
    write_json(folder / "splits_final.json", [*({"train": cases, "val": test} for cases in train), development])
    return [f"{target}:{case}" for case in test]


def pretrain(job: Job, epochs: int | None) -> None:
    if epochs is not None and "pretrain" not in job.result["stages"]:
        path = job.folder("preprocessed") / CORPUS / f"{PLANS}.json"
        plans = read_json(path)
        plans["hssl"]["pretraining"].update(num_epochs=epochs, warmup_epochs=min(3, epochs - 1))
        write_json(path, plans)
    job.stage("pretrain", "hssl", "pretrain", "900", "-device", "cpu")
    source = next((job.folder("results") / CORPUS).glob("*/fold_all"))
    metadata = read_json(source / "hssl.json")
    curves = metadata["curves"].items()
    job.result["pretraining"] = metadata["pretraining"]
    job.result["pretraining_last"] = {k: v[-1] for k, v in curves}
    job.result["pretraining_curves"] = {k: np.round(v, 4).tolist() for k, v in curves if "losses" in k or "_re" in k}
    job.weights = source / "hssl.safetensors"


def finetune(job: Job, target: str, epochs: int | None, pool: ThreadPoolExecutor) -> None:
    short, dataset_id = target.split("_")[1], str(int(target[7:10]))
    job.stage(f"seed_{short}", "hssl", "seed", "-d", dataset_id, "-w", str(job.weights), "-p", PLANS)
    path = job.folder("preprocessed") / target / f"{PLANS}_HSSL.json"
    plans = read_json(path)
    if epochs is not None:
        plans["hssl"]["finetuning"].update(num_epochs=epochs, warmup_epochs=min(1, epochs - 1))
    write_json(path, plans)
    job.result.setdefault("finetuning", {})[target] = plans["hssl"]["finetuning"]
    for seed in SEEDS:
        for arm in (["--scratch"], []):
            name = f"finetune_{short}_{'scratch' if arm else 'hssl'}_{seed}"
            pool.submit(
                job.stage, name, "hssl", "finetune", dataset_id, "3d_fullres", str(seed), *arm, "-device", "cpu"
            )


def dice(job: Job, target: str) -> dict[str, object]:
    """Held-out Dice in points: per arm and seed the mean over cases, and the paired difference per case."""
    means = {arm: per_case(job, target, arm) for arm in ("Scratch", "Finetune")}  # (seeds, cases, labels)
    difference = (means["Finetune"] - means["Scratch"]).mean(2)  # (seeds, cases)
    low, high = crossed_interval([difference])
    arms = {"scratch": means["Scratch"], "hssl": means["Finetune"]}
    return {
        "test_cases": difference.shape[1],
        "training_cases": TARGETS[target][1],
        **{f"{arm}_mean_by_seed": np.round(100 * m.mean((1, 2)), 2).tolist() for arm, m in arms.items()},
        **{f"{arm}_by_seed_and_label": np.round(100 * m.mean(1), 2).tolist() for arm, m in arms.items()},
        **{f"{arm}_mean": round(100 * float(m.mean()), 2) for arm, m in arms.items()},
        "difference": round(100 * float(difference.mean()), 2),
        "difference_interval_95": [round(100 * low, 2), round(100 * high, 2)],
        "interval": "crossed random effects of seeds and cases, Satterthwaite t (benchmark/intervals.py)",
    }


def per_case(job: Job, target: str, arm: str) -> np.ndarray:
    folder = job.folder("results") / target / f"nnUNetTrainerHSSL{arm}__{PLANS}_HSSL__3d_fullres"
    values = []
    for seed in SEEDS:
        cases = read_json(folder / f"fold_{seed}" / "validation" / "summary.json")["metric_per_case"]
        values.append([[label["Dice"] for label in case["metrics"].values()] for case in cases])
    return np.nan_to_num(np.array(values, dtype=float))  # nan: no voxel of a label in truth and prediction


def about() -> dict[str, object]:
    cpu = next((x for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x), platform.processor())
    return {
        "command": f"python {shlex.join(sys.argv)}",
        "cpu": cpu.split(":")[-1].strip(),
        "cores": os.cpu_count(),
        "versions": versions(),
        "seeds": list(SEEDS),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the real tasks")
    parser.add_argument("--work", type=Path, required=True, help="folder for nnU-Net's three folders and the logs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/main_job.json"))
    parser.add_argument("--epochs", type=int, help="pretraining epochs; default: the plan's")
    parser.add_argument("--finetuning-epochs", type=int, help="fine-tuning epochs; default: the plan's")
    parser.add_argument("--jobs", type=int, default=1, help="fine-tuning runs side by side")
    return parser.parse_args()


if __name__ == "__main__":
    main()
