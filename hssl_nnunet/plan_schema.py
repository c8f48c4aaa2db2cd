"""The `hssl` block of a plans file, its defaults and the presets.

A plans file of nnU-Net may carry extra keys. Ours is `hssl`; it exists in two roles: a corpus' plans hold a
`CorpusBlock`, the plans that `hssl seed` writes for a target hold a `TargetBlock`. Defaults lie in `plans/*.json`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from hssl_nnunet.errors import HSSLError, unknown_name
from hssl_nnunet.files import read_json
from hssl_nnunet.paths import plans_dir
from hssl_nnunet.plan_values import Count, FinetuningPlan, Index, Positive, PretrainingPlan
from hssl_nnunet.typed_json import STRICT, merged, parse

DEFAULT_PLANS = "nnUNetPlans"
SEEDED_SUFFIX = "_HSSL"
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class DomainPlan:
    """One domain of a corpus, as its own nnU-Net plans describe it.

    Attributes:
        dataset_name: nnU-Net's dataset name, for example `Dataset004_Hippocampus`.
        plans_name: name of the plans file in the dataset's preprocessed folder.
        data_identifier: folder of the preprocessed images; those without masks lie in `<data_identifier>_unlabelled`.
        modality: `CT`, `MR`, `PET`, ... from the channel names.
        groups: the groups this domain belongs to, from the finest level of the hierarchy to the coarsest; every
            domain has the same number of levels. Edit by hand where the derived ones are wrong.
        num_images: images (channels counted apart) in the manifest; 0 where that is not known, as of imported weights.
        spacing: mm per voxel along the axes of the preprocessed arrays (after `transpose_forward`); empty where that is
            not known.
        patch_size: the plan's patch in voxels; two entries for a 2d configuration.
        architecture: the plan's `architecture` entry, untouched.
    """

    dataset_name: str
    plans_name: str
    data_identifier: str
    modality: str
    groups: Annotated[tuple[str, ...], Field(min_length=1)]
    num_images: Index
    spacing: tuple[Positive, ...]
    patch_size: tuple[Count, ...]
    architecture: dict[str, Any]

    __pydantic_config__ = STRICT


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusBlock:
    """The `hssl` block of a corpus' plans.

    Attributes:
        domains: the datasets that teach.
        pretraining: the pretraining run.
        weights: path of a weights file that the pretraining goes on from; null = weights drawn anew.
        weights_sha256: content hash of that file, checked before training.
    """

    role: Literal["corpus"] = "corpus"
    format_version: Literal[1] = 1
    domains: Annotated[tuple[DomainPlan, ...], Field(min_length=1)]
    pretraining: PretrainingPlan
    weights: str | None = None  # both younger than format 1: older plans lack them
    weights_sha256: str | None = None

    __pydantic_config__ = STRICT


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetBlock:
    """The `hssl` block of a seeded target's plans.

    Attributes:
        weights: path of the weights file; null = none, for runs without weights alone.
        weights_sha256: content hash of that file, checked before training.
        finetuning: the fine-tuning run.
    """

    role: Literal["target"] = "target"
    format_version: Literal[1] = 1
    weights: str | None
    weights_sha256: str | None
    finetuning: FinetuningPlan

    __pydantic_config__ = STRICT


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """What `--preset NAME` stands for: one file `plans/preset_NAME.json`.

    Attributes:
        description: one sentence for the help.
        planner: class name of one of nnU-Net's planners.
        plans_name: name of the plans file it writes.
        gpu_memory_target_gb: memory the planner plans for; null = the planner's own.
        base_num_features: features of level 0; null = the planner's own.
        max_num_features: cap on the features of the deep levels; null = the planner's own.
        pretraining: values that differ from `plans/pretraining.json`; nested keys merge.
        finetuning: values that differ from `plans/finetuning.json`.
    """

    description: str
    planner: str
    plans_name: str
    gpu_memory_target_gb: Positive | None
    base_num_features: Count | None
    max_num_features: Count | None
    pretraining: dict[str, Any]
    finetuning: dict[str, Any]

    __pydantic_config__ = STRICT


def known_presets() -> list[str]:
    """Names of the presets that ship with the package."""
    return sorted(p.stem.removeprefix("preset_") for p in plans_dir().glob("preset_*.json"))


def load_preset(name: str) -> Preset:
    """Read `plans/preset_<name>.json`.

    Raises:
        HSSLError: no such preset; the known ones are listed.
    """
    if name not in known_presets():
        raise unknown_name("preset", name, known_presets())
    path = plans_dir() / f"preset_{name}.json"
    return parse(Preset, read_json(path), path)


def preset_of_plans(plans: dict[str, Any]) -> Preset:
    """Preset whose planner wrote `plans`, by its `plans_name`; the default preset when none has that name."""
    for name in known_presets():
        preset = load_preset(name)
        if preset.plans_name == plans["plans_name"].removesuffix(SEEDED_SUFFIX):
            return preset
    return load_preset("default")


def pretraining_plan(preset: Preset, source: str | Path | None = None, /, **overrides: Any) -> PretrainingPlan:
    """Defaults of `plans/pretraining.json`, overlaid by the preset, overlaid by `overrides`.

    Raises:
        HSSLError: a wrong or unknown value; `source` says where the overrides come from.
    """
    path = plans_dir() / "pretraining.json"
    return parse(PretrainingPlan, merged(merged(read_json(path), preset.pretraining), overrides), source or path)


def finetuning_plan(preset: Preset, source: str | Path | None = None, /, **overrides: Any) -> FinetuningPlan:
    """Defaults of `plans/finetuning.json`, overlaid by the preset, overlaid by `overrides`.

    Raises:
        HSSLError: a wrong or unknown value; `source` says where the overrides come from.
    """
    path = plans_dir() / "finetuning.json"
    return parse(FinetuningPlan, merged(merged(read_json(path), preset.finetuning), overrides), source or path)


def corpus_block(plans: dict[str, Any], source: str | Path) -> CorpusBlock:
    """The `hssl` block of a corpus' plans.

    Raises:
        HSSLError: the block is missing, belongs to a target, has wrong keys, domains differ in levels of groups, the
            loss learns nothing, or the warm-up is as long as the run.
    """
    block = _block(CorpusBlock, plans, source, "hssl corpus -d ... -o ...")
    levels = {d.dataset_name: len(d.groups) for d in block.domains}
    if len(set(levels.values())) > 1:
        counts = ", ".join(f"{name} {count}" for name, count in levels.items())
        raise HSSLError(f"Every domain of {source} needs as many `groups`, finest first; got {counts}. Edit the file.")
    _check_loss(block, source)
    check_length(block.pretraining, f"`hssl.pretraining` in {source}")
    return block


def _check_loss(block: CorpusBlock, source: str | Path) -> None:
    loss = block.pretraining.loss
    if not (loss.embeds or loss.decoded_views):
        raise HSSLError(f"Every term of `hssl.pretraining.loss` in {source} has weight 0: nothing would be learned.")
    if loss.reconstruction > 0 and loss.reconstruction_target == "masked" and loss.mask_ratio == 0:
        raise HSSLError(
            f"`hssl.pretraining.loss` in {source} reconstructs what is masked, and with `mask_ratio` 0 nothing is. "
            'Set that above 0, or `reconstruction_target` to "full".'
        )
    constant = _constant_terms(block)
    if all(constant.values()):
        told = " and ".join(f"`{name}`" for name in constant)
        raise HSSLError(
            f"Nothing would be learned by {told} of `hssl.pretraining.loss` in {source}: in this corpus and a step of "
            "its size nothing is there to be told from. Add domains or groups (for classification, and `negatives` "
            '"other_task"), images to a step (for contrast: `images_per_chunk`, `chunks_per_step`) or places '
            "(`voxel_points`), or give `reconstruction` a weight."
        )


def _constant_terms(block: CorpusBlock) -> dict[str, bool]:
    """Whether each term that has a weight is the same whatever the network says.

    A contrast of labels is that of a single image alone: images of one label are drawn together by it.
    """
    plan, loss = block.pretraining, block.pretraining.loss
    one_chunk, one_image = plan.chunks_per_step == 1, plan.chunks_per_step * plan.images_per_chunk == 1
    one_domain = len(block.domains) == 1
    one_group = all(len(set(level)) == 1 for level in zip(*(d.groups for d in block.domains), strict=True))
    elsewhere = loss.negatives == "other_task"
    no_negatives_in_step = loss.queue_per_domain == 0 and (one_image or (elsewhere and one_chunk))
    constant = {
        "image": no_negatives_in_step or (elsewhere and one_domain),
        "task": one_domain if loss.task_loss == "classification" else one_image,
        "group": one_group if loss.group_loss == "classification" else one_image,
        "reconstruction": False,
        "voxel": loss.voxel_points == 1,
    }
    return {name: value for name, value in constant.items() if getattr(loss, name) > 0}


def check_length(plan: PretrainingPlan | FinetuningPlan, source: str) -> None:
    """Check that a run is longer than what comes before the full learning rate of the whole network.

    Args:
        plan: values of the run.
        source: whose values they are.

    Raises:
        HSSLError: it is not.
    """
    schedule = plan.schedule if isinstance(plan, FinetuningPlan) else "warmup"
    before = {} if schedule == "stock" else {"warmup_epochs": plan.warmup_epochs}
    if isinstance(plan, FinetuningPlan) and schedule == "sawtooth":
        before["decoder_epochs"] = plan.decoder_epochs
    if before and sum(before.values()) >= plan.num_epochs:
        told = " and ".join(f"`{name}` {value}" for name, value in before.items())
        raise HSSLError(
            f"{source} has {told} of `num_epochs` {plan.num_epochs}: the whole network never trains at its full "
            f"learning rate. Lower {' or '.join(f'`{name}`' for name in before)}, or raise `num_epochs`."
        )


def target_block(plans: dict[str, Any], source: str | Path) -> TargetBlock:
    """The `hssl` block of a seeded target's plans.

    Raises:
        HSSLError: the block is missing, belongs to a corpus, has wrong keys, or a warm-up as long as the run.
    """
    block = _block(TargetBlock, plans, source, "hssl seed -d ... -w ...")
    check_length(block.finetuning, f"`hssl.finetuning` in {source}")
    return block


def _block(kind: type[T], plans: dict[str, Any], source: str | Path, remedy: str) -> T:
    role = "corpus" if kind is CorpusBlock else "target"
    block = plans.get("hssl")
    if not isinstance(block, dict):
        raise HSSLError(f"{source} has no `hssl` block. Run `{remedy}` and use the plans file that it writes.")
    if block.get("role") != role:
        raise HSSLError(
            f"The `hssl` block of {source} has role {block.get('role')!r}, expected {role!r}. Run `{remedy}`."
        )
    return parse(kind, block, f"the `hssl` block of {source}")
