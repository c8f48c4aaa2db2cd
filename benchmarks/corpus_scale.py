"""How the start of a pretraining grows with the number of images: seconds, memory, and the cost of a step's draw.

    python benchmarks/corpus_scale.py [--images 1000 10000 100000] [--label now] [--out .../corpus_scale.json]

For each number a process of its own reads a generated manifest, holds patients out, builds the trainer on a tiny
topology, reads its first batch and takes the first step, as `hssl pretrain` does. Every row has a name of its own for
one of a few files of tiny voxels, so that the disk is not what is measured. Memory is the peak until that step, and
until the weights are written; the part that torch and nnU-Net need with an almost empty corpus is told apart by a run
with ten images. Every number is the median of a few processes, beside the smallest and the largest.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import blosc2
import numpy as np

from hssl_nnunet.corpus.manifest import ImageRow, write_manifest
from hssl_nnunet.files import read_json, write_json
from hssl_nnunet.plan_schema import CorpusBlock, DomainPlan, load_preset, pretraining_plan
from hssl_nnunet.typed_json import to_json

CORPUS, PLANS, IDENTIFIER = "Dataset900_Scale", "nnUNetCPUPlans", "nnUNetCPUPlans_3d_fullres"
DOMAINS = ("Dataset001_A", "Dataset002_B", "Dataset003_C")
SHARES = (0.9, 0.099, 0.001)  # of the images
FILES, EDGE, STEPS = 50, 20, 500
EMPTY = 10  # images of the run that tells what the libraries need


def main() -> None:
    args = arguments()
    if args.child:
        print(json.dumps(start(args.child)))
        return
    import torch  # not in the child, which measures its own import
    from common import about

    runs = [median_of([measured(count) for _ in range(args.repeats)]) for count in (EMPTY, *args.images)]
    for run in runs[1:]:
        run["peak_gib_above_empty"] = round(run["peak_gib"] - runs[0]["peak_gib"], 3)
    known = read_json(args.out) if args.out.is_file() else {}
    command = f"python benchmarks/corpus_scale.py --images {' '.join(map(str, args.images))} --label {args.label}"
    measured_now = {"command": command, **about(torch.device("cpu"), torch.get_num_threads()), "runs": runs}
    write_json(args.out, {**known, args.label: measured_now})


def median_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    from common import spread

    middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    spreads = {key: spread([run[key] for run in runs]) for key in ("start_s", "peak_gib", "draw_of_a_step_us")}
    return {**middle, "processes": len(runs), "spread": spreads}


def measured(count: int) -> dict[str, Any]:
    """One corpus, started in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        begin = time.perf_counter()
        write_corpus(folder, count)
        print(f"{count} images, written in {time.perf_counter() - begin:.1f} s", flush=True)
        environment = {
            **os.environ,
            "nnUNet_raw": str(folder / "raw"),
            "nnUNet_preprocessed": str(folder),
            "nnUNet_results": str(folder / "results"),
        }
        begin = time.perf_counter()
        out = subprocess.run(
            [sys.executable, __file__, "--child", str(count)], env=environment, check=True, stdout=subprocess.PIPE
        )
        run = {"images": count, "process_s": round(time.perf_counter() - begin, 2)}
        run |= json.loads(out.stdout.splitlines()[-1])
        run["manifest_mib"] = round((folder / CORPUS / "manifest.csv").stat().st_size / 2**20, 2)
    print(run, flush=True)
    return run


def start(count: int) -> dict[str, Any]:
    """What `hssl pretrain` does before its first step, stage by stage."""
    seconds: dict[str, float] = {}
    with timed(seconds, "import"):
        from hssl_nnunet.launch import PRETRAIN_TRAINER, set_environment
        from hssl_nnunet.nnunet_training import trainers_found_at_once

        set_environment()
        from nnunetv2.run.run_training import get_trainer_from_args
    with timed(seconds, "build"):
        import torch

        device = torch.device("cpu")
        with trainers_found_at_once():
            trainer = get_trainer_from_args(CORPUS, "3d_fullres", "all", PRETRAIN_TRAINER, PLANS, device=device)
        trainer.initialize()  # reads the manifest
    with timed(seconds, "split_and_sampler"):
        trainer.on_train_start()
        training = trainer.dataloader_train
    with timed(seconds, "first_batch"):
        batch = next(training)
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    trainer.train_step(batch)
    peak = peak_gib()
    ready = time.perf_counter()
    for step in range(10**6, 10**6 + STEPS):  # a step far ahead costs what the first one does
        training.sampler.step(step)
    draw = (time.perf_counter() - ready) / STEPS
    with timed(seconds, "metadata_of_the_weights"):
        trainer.logger.local_logger.my_fantastic_logging.clear()
        trainer.save_weights(Path(os.environ["nnUNet_results"]) / "hssl.safetensors")
    assert len(trainer.rows) == count
    start_s = sum(seconds[k] for k in ("import", "build", "split_and_sampler", "first_batch"))
    return {
        "start_s": round(start_s, 2),
        **{f"{name}_s": round(value, 3) for name, value in seconds.items()},
        "draw_of_a_step_us": round(1e6 * draw, 1),
        "peak_gib": round(peak, 3),
        "peak_gib_at_the_end": round(peak_gib(), 3),
    }


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - begin


def write_corpus(preprocessed: Path, count: int) -> None:
    counts = [max(1, round(count * share)) for share in SHARES]
    counts[0] += count - sum(counts)
    for name in DOMAINS:
        for index in range(FILES):
            path = preprocessed / file_of(name, index)
            path.parent.mkdir(parents=True, exist_ok=True)
            voxels = np.random.default_rng(index).normal(size=(1, EDGE, EDGE, EDGE)).astype(np.float32)
            blosc2.asarray(voxels, urlpath=str(path))
            for copy in range(index, counts[DOMAINS.index(name)], FILES):
                (path.parent / f"{case_of(copy)}.b2nd").symlink_to(path)
    folder = preprocessed / CORPUS
    folder.mkdir()
    write_manifest(folder / "manifest.csv", (row(d, i) for d, n in enumerate(counts) for i in range(n)))
    configuration = {"data_identifier": IDENTIFIER, "patch_size": [16] * 3, "batch_size": 2, "spacing": [1.0] * 3}
    plans = {
        "dataset_name": CORPUS,
        "plans_name": PLANS,
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "configurations": {"3d_fullres": {**configuration, "architecture": architecture(), "batch_dice": False}},
        "hssl": to_json(block(counts)),
    }
    dataset = {"channel_names": {"0": "image"}, "labels": {"background": 0, "image": 1}, "file_ending": ".nii.gz"}
    write_json(folder / f"{PLANS}.json", plans)
    write_json(folder / "dataset_fingerprint.json", {})  # nnU-Net copies it
    write_json(folder / "dataset.json", {**dataset, "numTraining": count})


def block(counts: list[int]) -> CorpusBlock:
    domains = tuple(
        DomainPlan(
            dataset_name=name,
            plans_name=PLANS,
            data_identifier=IDENTIFIER,
            modality="MR",
            groups=("a", "MR"),
            num_images=count,
            spacing=(1.0, 1.0, 1.0),
            patch_size=(16, 16, 16),
            architecture=architecture(),
        )
        for name, count in zip(DOMAINS, counts, strict=True)
    )
    return CorpusBlock(domains=domains, pretraining=pretraining_plan(load_preset("cpu"), num_workers=0))


def row(domain: int, index: int) -> ImageRow:
    return ImageRow(
        domain=domain,
        dataset_name=DOMAINS[domain],
        case=case_of(index),
        channel=0,
        patient=f"{DOMAINS[domain]}_patient_{index // 2:06d}",
        labelled=False,
        preprocessed=f"{DOMAINS[domain]}/{IDENTIFIER}/{case_of(index)}.b2nd",
        content_hash=f"{domain:02x}{index:030x}",
        spacing_mm=(1.0, 0.7, 0.7),
        shape=(128, 320, 320),
        groups=("a", "MR"),
    )


def case_of(index: int) -> str:
    return f"patient_{index // 2:06d}_visit_{index % 2}"


def file_of(name: str, index: int) -> str:
    return f"{name}/{IDENTIFIER}/case_{index}.b2nd"


def architecture() -> dict[str, Any]:
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": 2,
            "features_per_stage": [4, 8],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * 2,
            "strides": [[1, 1, 1], [2, 2, 2]],
            "n_conv_per_stage": [1, 1],
            "n_conv_per_stage_decoder": [1],
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", nargs="+", type=int, default=[1000, 10000, 100000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--label", default="now", help="name of the measurement; others in the file stay")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/corpus_scale.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
