"""Time, memory and length of fine-tuning and pretraining, and what pretraining has learnt."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from hssl_nnunet.benchmark.records import RunRecord
from hssl_nnunet.benchmark.report import wording
from hssl_nnunet.benchmark.report.content import Content
from hssl_nnunet.benchmark.report.lengths import pretrained, steps
from hssl_nnunet.benchmark.report.tables import Group

# column -> what is shown of it: a term on held-out images, or a probe of the embedding
LEARNED = {
    "image": "val_image",
    "domain": "val_task",
    "group": "val_group",
    "reconstruction": "val_reconstruction",
    "places": "val_voxel",
    "domain told": "domain_accuracy",
    "by intensity and size alone": "domain_floor",
    "by the plan alone, on noise": "domain_noise",
    "effective rank": "effective_rank",
    "image found again": "image_accuracy",
    "by chance": "image_floor",
}


def costs(content: Content) -> list[Group]:
    """Dataset -> (arm, runs, iterations, time of a run and of an iteration, peak memory), over budgets and seeds."""
    groups = []
    for dataset_name in content.datasets:
        rows = []
        for arm in content.arms:
            records = [r for r in content.records if (r.dataset_name, r.arm) == (dataset_name, arm)]
            if records:
                rows.append((arm, *_cost(records)))
        groups.append(Group(title=dataset_name, rows=rows))
    return groups


def _cost(records: Sequence[RunRecord]) -> tuple[str, ...]:
    iterations = sum(r.num_epochs * r.num_iterations_per_epoch for r in records)
    step_s = sum(r.train_s for r in records) / iterations if iterations else float("nan")
    ram = [r.peak_gib for r in records if r.peak_gib is not None]
    gpu = [r.peak_gpu_gib for r in records if r.peak_gpu_gib is not None]
    return (
        str(len(records)),
        ", ".join(map(str, steps(records))),
        wording.duration(fmean(r.train_s for r in records)),
        f"{step_s:.2f} s" if step_s >= 1 else f"{1000 * step_s:.0f} ms",
        (f"{max(ram):.1f} GiB" if ram else wording.NOTHING) + (f", GPU {max(gpu):.1f} GiB" if gpu else ""),
    )


def pretrainings(content: Content) -> list[tuple[str, ...]]:
    """(arm, steps, images, time, weights file, its SHA-256) of each pretraining, and of each file from elsewhere.

    The SHA-256 that is not told comes from the records that began with the weights.
    """
    made, lengths = content.pretraining, pretrained(content)
    files = {n: str(a.weights_file) for n, a in content.plan.arms.items() if a.weights_file and n in content.arms}
    rows: list[tuple[str, ...]] = []
    for name in dict.fromkeys((*made, *files)):
        run, length = made.get(name), lengths.get(name.partition(", ")[0])
        rows.append(
            (
                name,
                wording.NOTHING if length is None else str(length.steps),
                wording.NOTHING if length is None else str(length.images),
                wording.NOTHING if run is None else wording.duration(run.seconds),
                (run.weights if run else files[name]) or wording.NOTHING,
                (run.sha256 if run else "") or _used(content, name) or wording.NOTHING,
            )
        )
    return rows


def _used(content: Content, name: str) -> str:
    """SHA-256 of the weights that the runs of an arm, or of an arm and target, began with."""
    runs = [r for r in content.records if name in (r.arm, f"{r.arm}, {r.dataset_name}")]
    return ", ".join(sorted({r.weights_sha256 for r in runs if r.weights_sha256}))


def learned(content: Content) -> list[tuple[str, ...]]:
    """Arm, then the columns of `LEARNED`, of every pretraining that has told something."""
    return [
        (name, *(f"{run.learned[key]:.3g}" if key in run.learned else wording.NOTHING for key in LEARNED.values()))
        for name, run in content.pretraining.items()
        if run.learned
    ]
