"""The domains' own plans, read and checked, and the plans of the corpus made from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hssl_nnunet.corpus.cases import RawDataset, dataset_id, read_raw_dataset
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.nnunet_plans import read_plans, resolved_configuration
from hssl_nnunet.paths import dataset_name, preprocessed_dir
from hssl_nnunet.plan_schema import DEFAULT_PLANS, CorpusBlock
from hssl_nnunet.remedies import preprocess_command, preset_name
from hssl_nnunet.typed_json import parse, to_json

FAMILIES = ("PlainConvUNet", "ResidualEncoderUNet")


@dataclass(frozen=True, slots=True)
class Source:
    """A domain as the corpus finds it.

    Attributes:
        dataset: its raw cases.
        plans: its plans file.
        configuration: the wanted configuration, with what it inherits.
        configuration_name: its name.
    """

    dataset: RawDataset
    plans: dict[str, Any]
    configuration: dict[str, Any]
    configuration_name: str

    @property
    def family(self) -> str:
        """Class name of the plan's network."""
        return str(self.configuration["architecture"]["network_class_name"]).rpartition(".")[2]

    @property
    def n_stages(self) -> int:
        """Resolution levels of the plan's network."""
        return int(self.configuration["architecture"]["arch_kwargs"]["n_stages"])


@dataclass(frozen=True, slots=True)
class _ArchKwargs:
    n_stages: int


@dataclass(frozen=True, slots=True)
class _Architecture:
    network_class_name: str
    arch_kwargs: _ArchKwargs


@dataclass(frozen=True, slots=True)
class _Configuration:
    data_identifier: str
    spacing: list[float]
    patch_size: list[int]
    normalization_schemes: list[str]
    use_mask_for_norm: list[bool]
    architecture: _Architecture


@dataclass(frozen=True, slots=True)
class DomainPlans:
    """All that a corpus reads of a domain's plans, the wanted configuration under `configuration`."""

    foreground_intensity_properties_per_channel: dict[str, Any]
    configuration: _Configuration


def read_sources(datasets: Sequence[str | int], plans_name: str, configuration: str) -> list[Source]:
    """Read the plans and list the raw cases of each dataset; no image is read.

    Raises:
        HSSLError: a dataset is unknown or named twice, lacks raw images, the plans file or the configuration; or the
            datasets' networks are of several families, or of one that the shared weights do not cover.
    """
    names = [dataset_name(d) for d in datasets]
    repeated = sorted({n for n in names if names.count(n) > 1})
    if repeated or not names:
        raise HSSLError(f"Got the datasets {list(datasets)}; expected each once, at least one. Twice: {repeated}.")
    sources = [_read_source(name, plans_name, configuration) for name in names]
    families = {s.dataset.name: s.family for s in sources}
    if len(set(families.values())) > 1 or families[names[0]] not in FAMILIES:
        listed = ", ".join(f"{name}: {family}" for name, family in families.items())
        raise HSSLError(
            f"The datasets of a corpus must have networks of one family, {' or '.join(FAMILIES)}. Got {listed}. "
            "Run `hssl plan_and_preprocess -d ... --preset NAME` with one preset for all."
        )
    return sources


def _read_source(name: str, plans_name: str, configuration: str) -> Source:
    dataset = read_raw_dataset(name)  # first: it tells a corpus, which no command preprocesses
    folder = preprocessed_dir() / name
    path = folder / f"{plans_name}.json"
    own = plans_name if preset_name(plans_name) else DEFAULT_PLANS  # no command of ours writes other plans
    command = preprocess_command(dataset_id(name), own, configuration)
    if not path.is_file():
        others = _plans_files(folder)
        choice = f"It has {', '.join(others)}: choose one for all datasets with -p, or run" if others else "Run"
        raise HSSLError(f"{name} has no {plans_name}.json in {folder}. {choice} `{command}`.")
    remedy = f"Run `{command}` to write it anew."
    plans = read_plans(path, remedy)
    if configuration not in plans["configurations"]:
        raise HSSLError(
            f"{path} has no configuration '{configuration}', only {', '.join(plans['configurations'])}: nnU-Net plans "
            "all that suit a dataset. Choose one of these with -c."
        )
    resolved = resolved_configuration(plans, configuration, path, remedy)
    parse(DomainPlans, plans | {"configuration": resolved}, path, remedy)
    return Source(dataset, plans, resolved, configuration)


def _plans_files(folder: Path) -> list[str]:
    names = []
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if isinstance(content, dict) and "configurations" in content:
            names.append(path.stem)
    return names


def deepest(sources: Sequence[Source]) -> Source:
    """The source with most resolution levels, the first of equals: its configuration is the body of the corpus'."""
    return max(sources, key=lambda s: s.n_stages)


def corpus_plans(
    body: Source, block: CorpusBlock, *, dataset_name: str, plans_name: str, configuration: str
) -> dict[str, Any]:
    """Plans that stock `nnUNetv2_train` accepts for the corpus: those of `body` for one channel, with our block.

    Only the `hssl` block describes the domains; the body is what nnU-Net itself reads (network, batch size, patch).
    """
    first_channel = {k: body.configuration[k][:1] for k in ("normalization_schemes", "use_mask_for_norm")}
    cascade = ("previous_stage", "next_stage", "inherits_from")
    entry = {k: v for k, v in body.configuration.items() if k not in cascade} | first_channel
    intensities = dict(list(body.plans["foreground_intensity_properties_per_channel"].items())[:1])
    return body.plans | {
        "dataset_name": dataset_name,
        "plans_name": plans_name,
        "configurations": {configuration: entry},
        "foreground_intensity_properties_per_channel": intensities,
        "hssl": to_json(block),
    }
