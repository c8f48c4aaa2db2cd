"""Table and picture of a demo: what went in, what pretraining learned, what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import SimpleITK as sitk
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from rich.table import Table

from hssl_nnunet.demo.phantoms import DOMAINS, TARGET, Domain, make_case
from hssl_nnunet.files import read_json, written_whole
from hssl_nnunet.training.pictures import OKABE_ITO

BLUE, ORANGE, GREEN, RED, *_ = OKABE_ITO
LABEL_COLOURS = (ORANGE, OKABE_ITO[5])
ARM_COLOURS = (OKABE_ITO[7], BLUE)
CURVES = {
    "train_losses": ("weighted sum", "black"),
    "train_reconstruction": ("reconstruction", RED),
    "train_voxel": ("places", OKABE_ITO[4]),
    "train_image": ("image", BLUE),
    "train_task": ("task", ORANGE),
    "train_group": ("group", GREEN),
}
TITLES = (
    "1  Five domains, one of them without masks, ...",
    "2  ... teach one set of weights ...",
    "3  ... that seeds the nnU-Net plan of the target",
)
HU_WINDOW = (-150, 300)
REMEDY = "Begin anew in another folder: `hssl demo --out DIR`."

Array = NDArray[Any]
Scores = Mapping[str, Sequence[Mapping[str, float]]]
"""Arm -> for each test case, in the order of their names: label -> Dice (nan where mask and prediction lack it)."""


def dice_per_case(predictions: Path, truth: Path) -> list[dict[str, float]]:
    """Dice of each label in each case of `truth`, by nnU-Net's own metric; nan where mask and prediction lack it."""
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    values = {name: value for value, name in enumerate(TARGET.labels, start=1)}
    results = []
    for mask in sorted(truth.glob(f"{TARGET.case(0)[:-3]}*.nii.gz")):
        metrics = compute_metrics(str(mask), str(predictions / mask.name), SimpleITKIO(), list(values.values()))
        results.append({name: float(metrics["metrics"][value]["Dice"]) for name, value in values.items()})
    return results


def results_table(scores: Scores) -> Table:
    """Mean Dice over the test cases, one line a label, one column an arm; nan does not count."""
    table = Table(title=f"Dice on {TARGET.num_test} test cases of {TARGET.dataset_name}", title_justify="left")
    table.add_column("label")
    for arm in scores:
        table.add_column(arm, justify="right")
    table.add_column("difference", justify="right")
    for label in (*TARGET.labels, "mean"):
        means = [mean_dice(cases, label) for cases in scores.values()]
        table.add_row(label, *(f"{m:.3f}" for m in means), f"{means[-1] - means[0]:+.3f}")
    return table


def mean_dice(cases: Sequence[Mapping[str, float]], label: str) -> float:
    """Mean Dice of a label over cases, or of all labels for `mean`; nan when no case counts."""
    if label == "mean":
        return mean(mean_dice(cases, name) for name in cases[0])
    values = [case[label] for case in cases if case[label] == case[label]]
    return mean(values) if values else float("nan")


def draw_demo(
    path: Path,
    *,
    pretraining: Path,
    validation: Mapping[str, Sequence[float]],
    truth: Path,
    predictions: Mapping[str, Path],
    scores: Scores,
) -> None:
    """Draw domains (top), what pretraining shows of itself (middle), the target's trainings and tests (bottom).

    Args:
        path: the PNG to write.
        pretraining: results folder of the pretraining.
        validation: arm -> nnU-Net's mean pseudo Dice on the validation cases after each epoch.
        truth: folder of the masks of the target's test cases.
        predictions: arm -> folder of its predicted masks.
        scores: arm -> for each test case: label -> Dice.
    """
    with style.context("default", after_reset=True):  # nnU-Net's progress plots leave seaborn's huge fonts behind
        figure = _figure(pretraining, validation, truth, predictions, scores)
        with written_whole(path) as temporary:
            figure.savefig(temporary, format="png", dpi=120)


def _figure(
    pretraining: Path,
    validation: Mapping[str, Sequence[float]],
    truth: Path,
    predictions: Mapping[str, Path],
    scores: Scores,
) -> Figure:
    figure = Figure(figsize=(16, 14.5), layout="constrained")
    parts: Any = figure.subfigures(3, 1, height_ratios=(3.4, 5.4, 3.4), hspace=0.02)
    for part, title in zip(parts, TITLES, strict=True):
        part.suptitle(title, fontweight="bold")
    for axis, domain in zip(parts[0].subplots(1, len(DOMAINS)), DOMAINS, strict=True):
        _draw_domain(axis, domain)
    loss, reconstructions, embeddings = parts[1].subplots(1, 3, width_ratios=(1.2, 0.85, 1.2))
    _draw_loss(loss, read_json(pretraining / "hssl.json", REMEDY)["curves"])
    _paste(reconstructions, imread(pretraining / "reconstructions.png"), "reconstructions of held-out images")
    picture = imread(pretraining / "embeddings.png")
    _paste(embeddings, picture[:, : picture.shape[1] // 2], "embeddings of held-out images")  # the half by domain
    progress, *panels, dots = parts[2].subplots(1, 5, width_ratios=(1.2, 1, 1, 1, 1.2))
    _draw_progress(progress, validation)
    _draw_case(panels, truth, predictions, scores)
    _draw_dice(dots, scores)
    return figure


def _draw_domain(axis: Axes, domain: Domain) -> None:
    """The slice of the first case that shows most of what is annotated, else the central one."""
    channels, mask = make_case(domain, 0)
    image, labels = sitk.GetArrayFromImage(channels[0]), sitk.GetArrayFromImage(mask)
    index = _richest_slice(labels) if labels.any() else len(labels) // 2
    _show(axis, image, index)
    _contour(axis, labels[index])
    spacing = " x ".join(f"{s:g}" for s in domain.spacing_mm)
    annotated = ", ".join(domain.labels) or "no masks"
    axis.set_title(f"{domain.name} ({' + '.join(domain.tables)})\n{spacing} mm; {annotated}", fontsize=9)


def _draw_progress(axis: Axes, validation: Mapping[str, Sequence[float]]) -> None:
    for (arm, values), colour in zip(validation.items(), ARM_COLOURS, strict=True):
        axis.plot(range(1, len(values) + 1), values, color=colour, label=arm)
    axis.set(xlabel="epoch", ylabel="mean pseudo Dice", ylim=(0, 1))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_title("validation cases", fontsize=10)
    axis.legend(frameon=False, fontsize=9, loc="lower right")


def _draw_case(axes: Sequence[Axes], truth: Path, predictions: Mapping[str, Path], scores: Scores) -> None:
    """The first test case: truth, and each arm's prediction."""
    name = f"{TARGET.case(TARGET.num_training)}.nii.gz"
    image = sitk.GetArrayFromImage(make_case(TARGET, TARGET.num_training)[0][0])
    masks = {"truth": _read(truth / name)} | {arm: _read(folder / name) for arm, folder in predictions.items()}
    index = _richest_slice(masks["truth"])
    for axis, (title, mask) in zip(axes, masks.items(), strict=True):
        _show(axis, image, index)
        _contour(axis, mask[index])
        dice = (
            [f"{label} {value:.2f}" for label, value in scores[title][0].items()] if title in scores else TARGET.labels
        )
        axis.set_title(f"{title}\n{', '.join(dice)}", fontsize=10)


def _draw_dice(axis: Axes, scores: Scores) -> None:
    """One dot a test case, a bar at the mean."""
    for index, label in enumerate(TARGET.labels):
        for (arm, cases), colour, shift in zip(scores.items(), ARM_COLOURS, (-0.18, 0.18), strict=True):
            values = np.array([case[label] for case in cases])
            place = index + shift + np.linspace(-0.08, 0.08, len(values))
            axis.scatter(place, values, s=22, c=colour, linewidths=0, label=arm if index == 0 else None)
            axis.hlines(np.nanmean(values), index + shift - 0.13, index + shift + 0.13, colour, linewidth=2)
    axis.set(xticks=range(len(TARGET.labels)), xticklabels=list(TARGET.labels), ylim=(-0.02, 1), ylabel="Dice")
    axis.set_title(f"{TARGET.num_test} test cases", fontsize=10)
    axis.legend(frameon=False, fontsize=9, loc="lower right")


def _draw_loss(axis: Axes, curves: Mapping[str, Sequence[float]]) -> None:
    for key, (name, colour) in CURVES.items():
        if key in curves:
            axis.plot(range(1, len(curves[key]) + 1), curves[key], color=colour, label=name)
    axis.set(xlabel="epoch", ylim=(0, None))
    axis.set_title("loss", fontsize=10)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(frameon=False, fontsize=9)


def _paste(axis: Axes, picture: Array, title: str) -> None:
    axis.imshow(picture)
    axis.set_axis_off()
    axis.set_title(title, fontsize=10)


def _read(path: Path) -> Array:
    return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(path))))


def _richest_slice(mask: Array) -> int:
    return int((mask > 0).sum((1, 2)).argmax())


def _show(axis: Axes, image: Array, index: int) -> None:
    is_ct = image.min() < -500
    low, high = HU_WINDOW if is_ct else np.percentile(image, (1, 99.5))
    axis.imshow(image[index], cmap="gray", vmin=low, vmax=high, interpolation="nearest")
    axis.set(xticks=[], yticks=[])


def _contour(axis: Axes, labels: Array) -> None:
    for value, colour in enumerate(LABEL_COLOURS, start=1):
        if (labels == value).any():
            axis.contour(labels == value, levels=[0.5], colors=[colour], linewidths=1.8)
