"""The domains' own plans, read and checked, and the plans of the corpus made from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hssl_nnunet.corpus.cases import RawDataset, dataset_id, read_raw_dataset
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.nnunet_plans import plans_in, read_plans, resolved_configuration
from hssl_nnunet.paths import dataset_name, preprocessed_dir
from hssl_nnunet.plan_schema import DEFAULT_PLANS, CorpusBlock
from hssl_nnunet.remedies import plan_command, preprocess_command, preset_name
from hssl_nnunet.typed_json import parse, to_json

FAMILIES = ("PlainConvUNet", "ResidualEncoderUNet")


@dataclass(frozen=True, slots=True)
class Source:
    """A domain as the corpus finds it.

    Attributes:
        dataset: its raw cases.
        plans: its plans file.
        plans_name: name of that file.
        configuration: the wanted configuration, with what it inherits.
        configuration_name: its name.
    """

    dataset: RawDataset
    plans: dict[str, Any]
    plans_name: str
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


def read_sources(datasets: Sequence[str | int], plans_name: str | None, configuration: str) -> list[Source]:
    """Read the plans and list the raw cases of each dataset; no image is read.

    Args:
        datasets: ids or names.
        plans_name: plans that every dataset has; None = `nnUNetPlans` where all have them, else the only ones that all
            have.
        configuration: configuration of these plans.

    Raises:
        HSSLError: a dataset is unknown or named twice, lacks raw images, the plans file or the configuration; or the
            datasets' networks are of several families, or of one that the shared weights do not cover; or they share
            several plans and none is named.
    """
    names = [dataset_name(d) for d in datasets]
    repeated = sorted({n for n in names if names.count(n) > 1})
    if repeated or not names:
        raise HSSLError(f"Got the datasets {list(datasets)}; expected each once, at least one. Twice: {repeated}.")
    raw = [read_raw_dataset(name) for name in names]  # first: it tells a corpus, which no command preprocesses
    chosen = plans_name or _shared_plans(names)
    sources = [_read_source(dataset, chosen, configuration) for dataset in raw]
    families = {s.dataset.name: s.family for s in sources}
    if len(set(families.values())) > 1 or families[names[0]] not in FAMILIES:
        listed = ", ".join(f"{name}: {family}" for name, family in families.items())
        raise HSSLError(
            f"The datasets of a corpus must have networks of one family, {' or '.join(FAMILIES)}. Got {listed}. "
            "Run `hssl plan_and_preprocess -d ... --preset NAME` with one preset for all."
        )
    return sources


def _shared_plans(names: Sequence[str]) -> str:
    """The plans that all datasets have; where none are, those that most have, which the others then lack."""
    found = {name: plans_in(preprocessed_dir() / name).items() for name in names}
    there = [[p.stem for p, content in plans if "hssl" not in content] for plans in found.values()]
    shared = [p for p in there[0] if all(p in others for others in there)]
    if DEFAULT_PLANS in shared:
        return DEFAULT_PLANS
    if len(shared) > 1:
        raise HSSLError(f"The datasets {', '.join(names)} all have the plans {', '.join(shared)}. Choose one with -p.")
    counts = Counter(shared or [p for plans in there for p in plans])
    return counts.most_common(1)[0][0] if counts else DEFAULT_PLANS


def _read_source(dataset: RawDataset, plans_name: str, configuration: str) -> Source:
    name, folder = dataset.name, preprocessed_dir() / dataset.name
    path = folder / f"{plans_name}.json"
    steps = (plan_command(name, plans_name), preprocess_command(dataset_id(name), plans_name, configuration))
    commands = " then ".join(f"`{step}`" for step in steps[preset_name(plans_name) is not None :])
    if not path.is_file():
        others = [p.stem for p in plans_in(folder)]
        choice = f"It has {', '.join(others)}: choose one for all datasets with -p, or run" if others else "Run"
        raise HSSLError(f"{name} has no {plans_name}.json in {folder}. {choice} {commands}.")
    remedy = f"Run {commands} to write it anew."
    plans = read_plans(path, remedy)
    if configuration not in plans["configurations"]:
        raise HSSLError(
            f"{path} has no configuration '{configuration}', only {', '.join(plans['configurations'])}: nnU-Net plans "
            "all that suit a dataset. Choose one of these with -c."
        )
    resolved = resolved_configuration(plans, configuration, path, remedy)
    parse(DomainPlans, plans | {"configuration": resolved}, path, remedy)
    return Source(dataset, plans, plans_name, resolved, configuration)


def corpus_plans(dataset_name: str, body: Source, block: CorpusBlock) -> dict[str, Any]:
    """Plans that stock `nnUNetv2_train` accepts for the corpus: those of `body` for one channel, with our block.

    Only the `hssl` block describes the domains; the body is what nnU-Net itself reads (network, batch size, patch).
    """
    first_channel = {k: body.configuration[k][:1] for k in ("normalization_schemes", "use_mask_for_norm")}
    cascade = ("previous_stage", "next_stage", "inherits_from")
    entry = {k: v for k, v in body.configuration.items() if k not in cascade} | first_channel
    intensities = dict(list(body.plans["foreground_intensity_properties_per_channel"].items())[:1])
    return body.plans | {
        "dataset_name": dataset_name,
        "plans_name": body.plans_name,
        "configurations": {body.configuration_name: entry},
        "foreground_intensity_properties_per_channel": intensities,
        "hssl": to_json(block),
    }
