"""Phantoms: one kind of anatomy under five imaging physics, from fixed seeds.

A trunk with liver, spleen, pancreas, spine and lesions is drawn at random for each case, and then imaged: Hounsfield
units with thick slices, MR with bias field and Rician noise, PET with a wide point spread and Poisson noise. Four
domains are written as MSD folders, the fifth, without masks, in nnU-Net's raw form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from hssl_nnunet.files import write_json

Floats = NDArray[np.float64]
Tissues = NDArray[np.uint8]
Imaging = Callable[[Tissues, Floats, tuple[float, ...], np.random.Generator], Floats]

AIR, FAT, MUSCLE, BONE, LIVER, SPLEEN, PANCREAS, LESION = range(8)

# one value a tissue, in the order above
HU = (-1000, -100, 45, 450, 150, 180, 115, 70)  # after contrast agent
T1 = (0, 900, 380, 150, 520, 560, 680, 300)
T2 = (0, 700, 250, 200, 340, 600, 450, 800)
ADC = (0, 200, 1200, 400, 1100, 800, 1300, 650)  # 1e-6 mm^2 / s
SUV = (0.02, 0.3, 0.7, 1.0, 2.2, 1.8, 1.3, 7.0)

HU_SPREAD, SPREAD = 0.015, 0.08  # of a tissue's value, between patients; the first of the density, HU + 1000
PET_FWHM_MM = 7.0
PET_COUNTS = 20.0  # a voxel at SUV 1
FWHM_TO_SIGMA = 1 / np.sqrt(8 * np.log(2))


# ---------------------------------------------------------------- anatomy


def draw_anatomy(shape: tuple[int, int, int], zoom: float, rng: np.random.Generator) -> Tissues:
    """Draw one patient.

    Args:
        shape: voxels along (z, y, x) = (head, back, left).
        zoom: 1 shows the whole trunk, 2 its middle half along each axis.
        rng: decides position, size and tilt of every organ.

    Returns:
        Tissue of each voxel, `shape`, uint8.
    """
    grid = np.stack(np.meshgrid(*(np.linspace(-1 / zoom, 1 / zoom, n) for n in shape), indexing="ij"))  # (3, Z, Y, X)
    tissues = np.full(shape, AIR, np.uint8)

    def paint(tissue: int, centre: tuple[float, ...], radii: tuple[float, ...], jitter: float = 0.06) -> None:
        tissues[_ellipsoid(grid, np.add(centre, rng.normal(0, jitter, 3)), radii, rng) < 1] = tissue

    paint(FAT, (0, 0, 0), (2.5, 0.78, 0.92), 0.02)
    paint(MUSCLE, (0, 0, 0), (2.4, 0.68, 0.82), 0.02)
    paint(BONE, (0, 0.48, 0), (3, 0.14, 0.14), 0.02)
    paint(LIVER, (-0.1, -0.1, -0.4), (0.6, 0.4, 0.34))
    paint(SPLEEN, (-0.1, 0.18, 0.5), (0.45, 0.27, 0.2))
    _paint_pancreas(tissues, grid, rng)
    for _ in range(rng.integers(1, 4)):
        centre = rng.uniform((-0.45, -0.3, -0.6), (0.35, 0.2, -0.2))  # in or near the liver
        paint(LESION, tuple(centre), tuple(rng.uniform(0.09, 0.17, 3)), 0.0)
    return tissues


def _ellipsoid(grid: Floats, centre: Floats, radii: tuple[float, ...], rng: np.random.Generator) -> Floats:
    """Normalised distance from the centre of a randomly tilted ellipsoid: below 1 inside."""
    z, y, x = _tilted(grid, centre, rng.normal(0, 0.15))
    size = rng.normal(1, 0.08)
    return np.asarray(np.hypot(np.hypot(z / radii[0], y / radii[1]), x / radii[2]) / size)


def _tilted(grid: Floats, centre: Floats, angle: float) -> Floats:
    z, y, x = grid - np.reshape(centre, (3, 1, 1, 1))
    return np.stack([z, np.cos(angle) * y - np.sin(angle) * x, np.sin(angle) * y + np.cos(angle) * x])


def _paint_pancreas(tissues: Tissues, grid: Floats, rng: np.random.Generator) -> None:
    """A bent tube across the trunk."""
    centre = np.add((0.3, 0.0, 0.08), rng.normal(0, 0.06, 3))
    z, y, x = _tilted(grid, centre, rng.normal(0, 0.2))
    y = y + rng.uniform(0.4, 0.9) * x**2
    inside = np.hypot(np.hypot(z / 0.32, y / 0.2), x / 0.5) / rng.normal(1, 0.08) < 1
    tissues[inside] = PANCREAS


# ---------------------------------------------------------------- physics


def _values(table: Floats, tissues: Tissues, spread: float, texture: float, rng: np.random.Generator) -> Floats:
    """Value of each voxel: the tissue's, as it is in this patient, with a smooth texture (share of the value)."""
    of_patient = table * rng.normal(1, spread, len(table))
    smooth = gaussian_filter(rng.normal(size=tissues.shape), 1.5)
    return np.asarray(of_patient[tissues] * (1 + texture * smooth / smooth.std()))


def image_ct(tissues: Tissues, table: Floats, spacing_mm: tuple[float, ...], rng: np.random.Generator) -> Floats:
    """Hounsfield units: air at -1000, a slight blur in the plane, and noise that is correlated over a few voxels."""
    density = _values(table + 1000, tissues, HU_SPREAD, 0.015, rng) - 1000
    blurred = gaussian_filter(density, (0, 0.5, 0.5))
    noise = gaussian_filter(rng.normal(size=tissues.shape), (0, 0.6, 0.6))
    return np.asarray(blurred + 20 * noise / noise.std())


def image_mr(tissues: Tissues, table: Floats, spacing_mm: tuple[float, ...], rng: np.random.Generator) -> Floats:
    """Magnitude of a complex signal: tissue times bias field, Gaussian noise in both parts (hence Rician)."""
    field_ = gaussian_filter(rng.normal(size=tissues.shape), [n / 3 for n in tissues.shape], mode="nearest")
    bias = np.exp(0.25 * (field_ - field_.mean()) / field_.std())
    signal = gaussian_filter(_values(table, tissues, SPREAD, 0.06, rng) * bias, 0.4)
    noise = 0.04 * table.max() * rng.normal(size=(2, *tissues.shape))
    return np.asarray(np.hypot(signal + noise[0], noise[1]))


def image_pet(tissues: Tissues, table: Floats, spacing_mm: tuple[float, ...], rng: np.random.Generator) -> Floats:
    """Standardised uptake values: counts after the scanner's point spread, Poisson, then a filter."""
    sigma = [PET_FWHM_MM * FWHM_TO_SIGMA / s for s in spacing_mm]
    expected = gaussian_filter(_values(table, tissues, SPREAD, 0.1, rng), sigma).clip(0)
    return np.asarray(gaussian_filter(rng.poisson(expected * PET_COUNTS) / PET_COUNTS, 0.6))


# ---------------------------------------------------------------- domains


@dataclass(frozen=True, kw_only=True)
class Domain:
    """One scanner and what is annotated in its images.

    Attributes:
        number: id of the dataset.
        name: name of the dataset.
        modality: its group in the hierarchy.
        tables: channel name -> value of each tissue.
        imaging: the physics, the same for every channel.
        spacing_mm: voxel size along (z, y, x).
        shape: voxels along (z, y, x); each case differs by up to a tenth.
        zoom: 1 shows the whole trunk, 2 its middle half along each axis.
        labels: label name -> its tissues; none = a dataset without masks.
        num_training: cases in imagesTr.
        num_test: cases in imagesTs.
    """

    number: int
    name: str
    modality: str
    tables: dict[str, tuple[float, ...]]
    imaging: Imaging
    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int, int]
    zoom: float = 1.0
    labels: dict[str, tuple[int, ...]] = field(default_factory=dict)
    num_training: int = 10
    num_test: int = 0

    @property
    def dataset_name(self) -> str:
        """nnU-Net's name of the dataset."""
        return f"Dataset{self.number:03d}_{self.name}"

    def case(self, index: int) -> str:
        """Name of a case; the test cases follow the training cases."""
        return f"{self.name.lower()}_{index:03d}"


DOMAINS = (
    Domain(
        number=1,
        name="TrunkCT",
        modality="CT",
        tables={"CT": HU},
        imaging=image_ct,
        spacing_mm=(5.0, 1.0, 1.0),
        shape=(20, 48, 48),
        labels={"liver": (LIVER, LESION), "spleen": (SPLEEN,)},
        num_test=2,
    ),
    Domain(
        number=2,
        name="AbdomenMR",
        modality="MR",
        tables={"T1": T1},
        imaging=image_mr,
        spacing_mm=(1.0, 1.0, 1.0),
        shape=(28, 30, 30),
        zoom=1.3,
        labels={"pancreas": (PANCREAS,), "spleen": (SPLEEN,)},
        num_training=14,
        num_test=8,
    ),
    Domain(
        number=3,
        name="LesionPET",
        modality="PET",
        tables={"PET": SUV},
        imaging=image_pet,
        spacing_mm=(4.0, 4.0, 4.0),
        shape=(32, 32, 32),
        labels={"lesion": (LESION,)},
    ),
    Domain(
        number=4,
        name="LiverMR",
        modality="MR",
        tables={"T2": T2, "ADC": ADC},
        imaging=image_mr,
        spacing_mm=(6.0, 1.0, 1.0),
        shape=(16, 48, 48),
        labels={"liver": (LIVER,), "lesion": (LESION,)},
    ),
    Domain(
        number=5,
        name="UnlabelledCT",
        modality="CT",
        tables={"CT": HU},
        imaging=image_ct,
        spacing_mm=(1.5, 1.5, 1.5),
        shape=(36, 36, 36),
    ),
)
TARGET = DOMAINS[1]


def make_case(domain: Domain, index: int) -> tuple[list[sitk.Image], sitk.Image]:
    """Image one patient; the same domain and index give the same voxels.

    Returns:
        One image a channel, float32, and the mask, uint8: 0 background, then the domain's labels in their order.
    """
    rng = np.random.default_rng((domain.number, index))
    stretch = rng.uniform(0.9, 1.1, 3)
    shape = (
        round(domain.shape[0] * stretch[0]),
        round(domain.shape[1] * stretch[1]),
        round(domain.shape[2] * stretch[2]),
    )
    tissues = draw_anatomy(shape, domain.zoom, rng)
    channels = [domain.imaging(tissues, np.array(t, float), domain.spacing_mm, rng) for t in domain.tables.values()]
    mask = np.zeros(shape, np.uint8)
    for value, members in enumerate(domain.labels.values(), start=1):
        mask[np.isin(tissues, members)] = value
    return [_image(c.astype(np.float32), domain) for c in channels], _image(mask, domain)


def _image(array: NDArray[Any], domain: Domain) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(domain.spacing_mm[::-1])  # ITK counts x first
    return image


# ---------------------------------------------------------------- folders


def write_msd(domain: Domain, folder: Path, truth: Path) -> None:
    """Write a domain as an MSD folder (several channels as one 4D image), and the masks of imagesTs into `truth`."""
    for index in range(domain.num_training + domain.num_test):
        channels, mask = make_case(domain, index)
        training = index < domain.num_training
        image = channels[0] if len(channels) == 1 else sitk.JoinSeries(channels)
        name = f"{domain.case(index)}.nii.gz"
        _write(image, folder / ("imagesTr" if training else "imagesTs") / name)
        _write(mask, (folder / "labelsTr" if training else truth) / name)
    names = [f"{domain.case(i)}.nii.gz" for i in range(domain.num_training + domain.num_test)]
    training_names, test_names = names[: domain.num_training], names[domain.num_training :]
    content = {
        "name": domain.name,
        "description": "Phantoms of hssl demo",
        "tensorImageSize": "4D" if len(domain.tables) > 1 else "3D",
        "modality": {str(i): name for i, name in enumerate(domain.tables)},
        "labels": {str(i): name for i, name in enumerate(["background", *domain.labels])},
        "numTraining": domain.num_training,
        "numTest": domain.num_test,
        "training": [{"image": f"./imagesTr/{n}", "label": f"./labelsTr/{n}"} for n in training_names],
        "test": [f"./imagesTs/{n}" for n in test_names],
    }
    write_json(folder / "dataset.json", content)


def write_unlabelled(domain: Domain, folder: Path) -> None:
    """Write a domain in nnU-Net's raw form, without masks."""
    for index in range(domain.num_training):
        for channel, image in enumerate(make_case(domain, index)[0]):
            _write(image, folder / "imagesTr" / f"{domain.case(index)}_{channel:04d}.nii.gz")
    content = {
        "channel_names": {str(i): name for i, name in enumerate(domain.tables)},
        "labels": {},
        "numTraining": domain.num_training,
        "file_ending": ".nii.gz",
    }
    write_json(folder / "dataset.json", content)


def _write(image: sitk.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
