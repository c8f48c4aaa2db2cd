"""A fine-tuned model as a folder or zip that stock nnU-Net predicts with, on a machine without this package."""

from __future__ import annotations

import shlex
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import torch

from hssl_nnunet.device import choose_device
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.files import folder_beside, write_json, written_whole
from hssl_nnunet.nnunet_plans import inherited
from hssl_nnunet.paths import FINAL_CHECKPOINT, WEIGHTS_FILE, dataset_name, model_folder, results_dir
from hssl_nnunet.plan_schema import DEFAULT_PLANS, SEEDED_SUFFIX
from hssl_nnunet.preflight import preprocessed_otherwise
from hssl_nnunet.remedies import finetune_command, seed_command
from hssl_nnunet.transfer.checkpoints import load_checkpoint, save_checkpoint
from hssl_nnunet.transfer.seeding import target_network
from hssl_nnunet.typed_json import differences

STOCK_TRAINER = "nnUNetTrainer"
OF_TRAINER = {"nnUNetTrainerHSSLScratch": "_Scratch", "nnUNetTrainerHSSLVanilla": "_Vanilla"}
FINGERPRINT = "dataset_fingerprint.json"
LABELS = ("labels", "regions_class_order", "channel_names", "modality", "file_ending")  # of dataset.json
EXTRAS = ("progress.png", "validation/summary.json")  # of a fold; as nnU-Net's own export takes them
# of the folds together, as its own export takes them: beside them lie the patients' segmentations and private plans
MERGED = ("summary.json", "postprocessing.pkl", "postprocessing.json")


def export_model(
    dataset: str | int,
    configuration: str,
    plans_name: str,
    trainer: str,
    folds: Sequence[int | str] | None,
    output: str | Path,
    checkpoint: str = FINAL_CHECKPOINT,
) -> Path:
    """Write `<Dataset>/nnUNetTrainer__<plans>__<configuration>/` into a folder, or as a zip.

    The control's plans are called `<plans>_Scratch` there, so that both models can be installed. Plans and dataset.json
    are those that the folds were trained with: the ones beside them are of whichever fold began last.

    The zip suits `nnUNetv2_install_pretrained_model_from_zip`, the folder `nnUNetv2_predict_from_modelfolder`; with
    `nnUNet_results` set to `output`, `nnUNetv2_predict -tr nnUNetTrainer` finds it as well.

    Args:
        dataset: dataset name or id.
        configuration: nnU-Net's configuration.
        plans_name: plans the model was trained with.
        trainer: trainer class the model was trained with.
        folds: folds to export; None = all that hold the checkpoint, which must have begun with the same weights.
        output: folder to write into, or a file name that ends in `.zip`.
        checkpoint: file name of the checkpoint in each fold; keeps its name.

    Returns:
        The zip, or the model folder inside `output`.

    Raises:
        HSSLError: model, fold or checkpoint missing; a pretraining run; a network that stock nnU-Net does not build;
            folds of different weights that were not named, or of other images or labels; something is there already.
    """
    name, output = dataset_name(dataset), Path(output)
    source = _model_folder(name, trainer, plans_name, configuration)
    exported_name = exported_plans_name(plans_name, trainer)
    relative = model_folder(Path(), name, STOCK_TRAINER, exported_name, configuration)
    as_zip = output.suffix.lower() == ".zip"
    result = output if as_zip else output / relative
    if result.exists():
        raise HSSLError(f"{result} exists already. Remove it, or name another output with `-o`.")
    chosen = _folds_with(source, folds, checkpoint)
    try:
        with folder_beside(output if as_zip else output / relative.name) as temporary:
            model = temporary / relative
            trained = _build(source, model, exported_name, chosen, checkpoint)
            if folds is None:
                _check_one_start(trained, source)
            _deliver(model, result, temporary if as_zip else None)
    except OSError as error:
        raise HSSLError(
            f"Cannot write {result}: {error.strerror or error}. Name a folder you may write to, or a .zip in one, with "
            "`-o`."
        ) from error
    return result


def trained_plans_name(dataset: str | int, trainer: str, configuration: str) -> str | None:
    """The plans of which there is a model: `nnUNetPlans_HSSL`, or the only ones; None where there is no model.

    A folder without a checkpoint is none: a training that ended at its start leaves one.

    Args:
        dataset: dataset name or id.
        trainer: trainer class of the model.
        configuration: nnU-Net's configuration.

    Raises:
        HSSLError: the dataset is missing, or there are models of several plans.
    """
    base = results_dir() / dataset_name(dataset)
    folders = {path.parents[1] for path in base.glob(f"{trainer}__*__{configuration}/fold_*/checkpoint_*.pth")}
    found = sorted(folder.name.removeprefix(f"{trainer}__").removesuffix(f"__{configuration}") for folder in folders)
    if (usual := DEFAULT_PLANS + SEEDED_SUFFIX) in found:
        return usual
    if len(found) > 1:
        raise HSSLError(f"{base} holds models of several plans: {', '.join(found)}. Choose one with -p.")
    return next(iter(found), None)


def exported_plans_name(plans_name: str, trainer: str) -> str:
    """What the plans of an exported model are called: of the same plans there may be the control's model beside it.

    Args:
        plans_name: plans the model was trained with.
        trainer: trainer class the model was trained with.
    """
    return plans_name + OF_TRAINER.get(trainer, "")


def prediction_commands(exported: str | Path, checkpoint: str = FINAL_CHECKPOINT) -> list[str]:
    """The commands of stock nnU-Net that predict with an exported model; INPUT and OUTPUT are the user's folders.

    Args:
        exported: the zip or the model folder, as `export_model` returns it.
        checkpoint: file name of the checkpoint in each fold.
    """
    exported = Path(exported)
    if exported.suffix.lower() == ".zip":
        with zipfile.ZipFile(exported) as archive:
            files = [PurePath(name) for name in archive.namelist()]
        before, first = "", [shlex.join(["nnUNetv2_install_pretrained_model_from_zip", str(exported)])]
    else:
        base = exported.parents[1]
        files = [path.relative_to(base) for path in exported.rglob("*")]
        before, first = f"nnUNet_results={shlex.quote(str(base))} ", []
    folds = sorted(f.parts[2].removeprefix("fold_") for f in files if f.name == checkpoint)
    dataset, model = files[0].parts[:2]
    trainer, _, rest = model.partition("__")
    plans_name, _, configuration = rest.rpartition("__")  # the plans' own name may hold the separator
    words = ["-d", dataset, "-tr", trainer, "-p", plans_name, "-c", configuration, "-f", *folds]
    words += [] if checkpoint == FINAL_CHECKPOINT else ["-chk", checkpoint]
    device = choose_device(None).type
    words += [] if device == "cuda" else ["-device", device]  # nnU-Net's default fails where there is no GPU
    return [*first, f"{before}nnUNetv2_predict {shlex.join(words)} -i INPUT -o OUTPUT"]


def _model_folder(dataset: str, trainer: str, plans_name: str, configuration: str) -> Path:
    folder = model_folder(results_dir(), dataset, trainer, plans_name, configuration)
    if not folder.is_dir():
        there = _listed(folder.parent.glob("*__*__*"))
        raise HSSLError(
            f"No model {folder}. There: {there}. Choose one with `-tr`, `-p` and `-c`, or run "
            f"`{finetune_command(dataset, configuration, plans_name, scratch=trainer.endswith('Scratch'))}`."
        )
    return folder


def _folds_with(source: Path, folds: Sequence[int | str] | None, checkpoint: str) -> list[Path]:
    there = sorted(p.parent for p in source.glob(f"fold_*/{checkpoint}"))
    chosen = there if folds is None else [source / f"fold_{fold}" for fold in folds]
    missing = [folder.name for folder in chosen if folder not in there]
    if missing or not chosen:
        raise HSSLError(
            f"{source} has no {checkpoint} in {', '.join(missing) or 'any fold'}. "
            f"There: {_listed(source.glob('fold_*/checkpoint_*.pth'), source)}. Choose with `-f` and `-chk`, or train "
            "the fold to its end."
        )
    return chosen


def _listed(paths: Any, base: Path | None = None) -> str:
    return ", ".join(sorted(str(p.relative_to(base)) if base else p.name for p in paths)) or "nothing"


def _build(source: Path, model: Path, plans_name: str, folds: list[Path], checkpoint: str) -> dict[str, dict[str, Any]]:
    """Write the model's folder; returns what each fold was trained with, nnU-Net's `init_args`."""
    trained: dict[str, dict[str, Any]] = {}
    _copy_if_there(source / FINGERPRINT, model / FINGERPRINT)
    merged = f"crossval_results_folds_{'_'.join(fold.name.removeprefix('fold_') for fold in folds)}"
    for name in MERGED:
        _copy_if_there(source / merged / name, model / merged / name)
    for fold in folds:
        content = _stock_checkpoint(fold / checkpoint, plans_name)
        trained[fold.name] = content["init_args"]
        _check_alike(trained, fold)
        save_checkpoint(model / fold.name / checkpoint, content)
        for name in EXTRAS:
            _copy_if_there(fold / name, model / fold.name / name)
    first = trained[folds[0].name]
    write_json(model / "plans.json", first["plans"])
    write_json(model / "dataset.json", first["dataset_json"])
    return trained


def _check_alike(trained: dict[str, dict[str, Any]], fold: Path) -> None:
    """Check that a fold has the first one's network, images and labels: nnU-Net reads plans and dataset.json once."""
    name, first = next(iter(trained.items()))
    now = trained[fold.name]
    images = preprocessed_otherwise(first["plans"], now["plans"], now["configuration"], fold)
    others = differences("the model", _labels_and_network(first, fold), _labels_and_network(now, fold))
    if told := "; ".join(filter(None, (images, *others))):
        raise HSSLError(
            f"{fold} was trained otherwise than {name} beside it, hence they are not one model: {told}. Name folds "
            "that belong together with `-f`, or train the others again."
        )


def _labels_and_network(init_args: dict[str, Any], fold: Path) -> dict[str, Any]:
    configuration = inherited(init_args["plans"], init_args["configuration"], fold)
    labels = {key: init_args["dataset_json"].get(key) for key in LABELS}
    return {**labels, "architecture": configuration.get("architecture")}


def _check_one_start(trained: dict[str, dict[str, Any]], source: Path) -> None:
    starts = {fold: (args["plans"].get("hssl") or {}).get("weights_sha256") for fold, args in trained.items()}
    if len(set(starts.values())) > 1:
        told = ", ".join(f"{fold}: {str(sha256)[:12]}" for fold, sha256 in starts.items())
        raise HSSLError(
            f"The folds of {source} began with different weights ({told}), because the target was seeded again in "
            "between. Name those that belong together with `-f`, or train the others again."
        )


def _deliver(model: Path, result: Path, packed: Path | None) -> None:
    """Move the model to `result`, or zip the folder `packed` that it lies in to there."""
    if packed is not None:
        _zip(packed, result)
    else:
        result.parent.mkdir(parents=True, exist_ok=True)
        model.rename(result)


def _copy_if_there(source: Path, target: Path) -> None:
    if source.is_file():
        with written_whole(target) as temporary:
            shutil.copyfile(source, temporary)


def _stock_checkpoint(path: Path, plans_name: str) -> dict[str, Any]:
    """What prediction needs of a checkpoint: no optimiser, no log, no random states."""
    content = load_checkpoint(path)
    if lacking := [key for key in ("network_weights", "init_args") if key not in content]:
        raise HSSLError(f"{path} lacks `{lacking[0]}`, hence is no checkpoint of a training. Choose one with `-chk`.")
    init_args = {**content["init_args"], "plans": _public(content["init_args"]["plans"], path, plans_name)}
    _check_stock_network(content["network_weights"], init_args, path)
    return {
        "network_weights": content["network_weights"],
        "init_args": init_args,
        "trainer_name": STOCK_TRAINER,
        "inference_allowed_mirroring_axes": content.get("inference_allowed_mirroring_axes"),
    }


def _public(plans: dict[str, Any], path: Path, plans_name: str) -> dict[str, Any]:
    """Plans of another name; of the weights' path only the file name stays, for the folders are this machine's own."""
    block = plans.get("hssl") or {}
    if block.get("role") == "corpus":
        raise HSSLError(
            f"{path} is of a pretraining run, which segments nothing. Seed a target with its `{WEIGHTS_FILE}` "
            f"(`{seed_command('TARGET', path.with_name(WEIGHTS_FILE))}`), run `hssl finetune`, and export that."
        )
    named = {"hssl": {**block, "weights": Path(block["weights"]).name}} if block.get("weights") else {}
    return {**plans, "plans_name": plans_name, **named}


def _check_stock_network(weights: dict[str, torch.Tensor], init_args: dict[str, Any], path: Path) -> None:
    plans, dataset_json, configuration = (init_args[key] for key in ("plans", "dataset_json", "configuration"))
    network, _ = target_network(plans, dataset_json, configuration, str(path), device="meta")
    stock = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    differing = stock.items() ^ {name: tuple(tensor.shape) for name, tensor in weights.items()}.items()
    if differing:
        first = min(name for name, _ in differing)
        raise HSSLError(
            f"The network in {path} is not the one its plans build (first difference at {first}), hence stock nnU-Net "
            "cannot predict with it. Export models of nnUNetTrainerHSSLFinetune or nnUNetTrainerHSSLScratch."
        )


def _zip(folder: Path, output: Path) -> None:
    with written_whole(output) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder))
