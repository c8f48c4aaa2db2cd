"""`hssl demo`: every step of the way on phantoms, by the functions that stand behind the commands."""

from __future__ import annotations

import os
import shlex
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from hssl_nnunet.demo.journal import Journal, open_journal
from hssl_nnunet.demo.phantoms import DOMAINS, TARGET, Domain, write_msd, write_unlabelled
from hssl_nnunet.device import choose_device
from hssl_nnunet.files import write_json
from hssl_nnunet.launch import FINETUNE_TRAINER, PRETRAIN_TRAINER, SCRATCH_TRAINER, Training, set_environment, train
from hssl_nnunet.paths import ENV_PREPROCESSED, ENV_RAW, ENV_RESULTS, FINAL_CHECKPOINT, WEIGHTS_FILE
from hssl_nnunet.plan_schema import SEEDED_SUFFIX

if TYPE_CHECKING:
    import torch

PRESET, PLANS, CONFIGURATION = "demo", "nnUNetDemoPlans", "3d_fullres"
CORPUS_ID, CORPUS_NAME = 900, "Phantoms"
FEW = 3  # labelled cases that the target is trained with
VALIDATION = 2
PRETRAINING = Training(
    dataset=f"Dataset{CORPUS_ID}_{CORPUS_NAME}",
    configuration=CONFIGURATION,
    fold="all",
    trainer=PRETRAIN_TRAINER,
    plans_name=PLANS,
)
ARMS = {
    arm: replace(PRETRAINING, dataset=TARGET.dataset_name, fold="0", trainer=trainer, plans_name=PLANS + SEEDED_SUFFIX)
    for arm, trainer in (("scratch", SCRATCH_TRAINER), ("seeded", FINETUNE_TRAINER))
}
FOLDERS = (ENV_RAW, ENV_PREPROCESSED, ENV_RESULTS)


@dataclass(frozen=True)
class Demo:
    """The places of a demo, and the plan values that differ from its preset's."""

    out: Path
    pretraining: Mapping[str, Any]
    finetuning: Mapping[str, Any]

    @property
    def truth(self) -> Path:
        """Masks of the target's test cases."""
        return self.out / "truth"

    @property
    def exclusions(self) -> Path:
        """Cases that pretraining must not see."""
        return self.out / "exclude.txt"

    @property
    def hierarchy(self) -> Path:
        """Groups of the domains."""
        return self.out / "hierarchy.json"

    def msd(self, domain: Domain) -> Path:
        """A domain as an MSD folder."""
        return self.out / "msd" / f"Task{domain.number:02d}_{domain.name}"

    def model(self, arm: str) -> Path:
        """A fine-tuned model for stock nnU-Net."""
        return self.out / "models" / arm

    def predictions(self, arm: str) -> Path:
        """Predicted masks of the target's imagesTs."""
        return self.out / "predictions" / arm


def run_demo(
    out: str | Path,
    pretraining_overrides: Mapping[str, Any] | None = None,
    finetuning_overrides: Mapping[str, Any] | None = None,
) -> None:
    """Run the demo in a folder of its own; stages that an earlier run has finished are not repeated.

    Args:
        out: the folder; made if it is missing. nnU-Net's three folders lie inside.
        pretraining_overrides: values of `PretrainingPlan` that differ from the preset's.
        finetuning_overrides: values of `FinetuningPlan` that differ from the preset's.

    Raises:
        HSSLError: `out` holds something else than a demo, or a stage cannot write.
    """
    demo = Demo(Path(out).resolve(), pretraining_overrides or {}, finetuning_overrides or {})
    journal = open_journal(demo.out)
    start = time.monotonic()
    os.environ.update({variable: str(demo.out / variable) for variable in FOLDERS})
    set_environment()
    for variable in FOLDERS:
        journal.console.print(f"[cyan]export {variable}={escape(str(demo.out / variable))}[/]", soft_wrap=True)
    journal.console.print(f"nnU-Net's own output: tail -f {escape(str(journal.log))}", soft_wrap=True)
    _prepare(demo, journal)
    _pretrain(demo, journal)
    for arm in ARMS:
        _train_and_predict(demo, journal, arm)
    _show_results(demo, journal, time.monotonic() - start)


# ---------------------------------------------------------------- stages


def _prepare(demo: Demo, journal: Journal) -> None:
    """Phantoms, raw and preprocessed datasets, the few labels, the corpus."""
    from hssl_nnunet.corpus.convert import convert_msd
    from hssl_nnunet.corpus.preprocess import plan_and_preprocess

    numbers = " ".join(str(d.number) for d in DOMAINS)
    journal.run("phantoms", f"# phantoms of {len(DOMAINS)} domains, four as MSD tasks", partial(_phantoms, demo))
    for domain in DOMAINS:
        if domain.labels:
            convert = partial(convert_msd, demo.msd(domain), overwrite=True)
            journal.run(f"convert {domain.name}", _command("hssl convert_msd -i", demo.msd(domain)), convert)
    preprocess = partial(plan_and_preprocess, [d.number for d in DOMAINS], (CONFIGURATION,), PRESET)
    journal.run("preprocess", f"hssl plan_and_preprocess -d {numbers} --preset {PRESET}", preprocess)
    note = f"# {FEW} training cases into splits_final.json; those that test them into {demo.exclusions.name}"
    journal.run("choices", f"{note}; groups into {demo.hierarchy.name}", partial(_choices, demo))
    command = f"hssl corpus -d {numbers} -o {CORPUS_ID} -n {CORPUS_NAME} -p {PLANS}"
    command = _command(command, "--hierarchy", demo.hierarchy, "--exclude", demo.exclusions)
    journal.run("corpus", command, partial(_corpus, demo, journal.console))


def _phantoms(demo: Demo) -> None:
    for folder in (demo.out / "msd", demo.truth):
        shutil.rmtree(folder, ignore_errors=True)
    for domain in DOMAINS:
        if domain.labels:
            write_msd(domain, demo.msd(domain), demo.truth)
        else:
            write_unlabelled(domain, demo.out / ENV_RAW / domain.dataset_name)


def _choices(demo: Demo) -> None:
    """Train the target on few cases; hide the patients that test it from pretraining; group domains by modality."""
    cases = [TARGET.case(i) for i in range(TARGET.num_training + TARGET.num_test)]
    training, validation, test = cases[:FEW], cases[FEW : FEW + VALIDATION], cases[TARGET.num_training :]
    split = [{"train": training, "val": validation}]
    write_json(demo.out / ENV_PREPROCESSED / TARGET.dataset_name / "splits_final.json", split)
    demo.exclusions.write_text("".join(f"{TARGET.number}:{case}\n" for case in validation + test))
    write_json(demo.hierarchy, {"groups": {d.dataset_name: [d.modality] for d in DOMAINS}})


def _corpus(demo: Demo, console: Console) -> None:
    from hssl_nnunet.corpus.build import build_corpus, corpus_table

    report = build_corpus(
        [d.number for d in DOMAINS],
        CORPUS_ID,
        CORPUS_NAME,
        plans_name=PLANS,
        configuration=CONFIGURATION,
        hierarchy_file=demo.hierarchy,
        exclude_file=demo.exclusions,
        pretraining_overrides=demo.pretraining,
        overwrite=True,
    )
    console.print(corpus_table(report))
    for note in report.notes:
        console.print(f"Note: {escape(note)}")


def _pretrain(demo: Demo, journal: Journal) -> None:
    """Pretraining, and its weights in the target's plans."""
    _train(journal, "pretrain", f"hssl pretrain {CORPUS_ID}", PRETRAINING)
    command = _command(f"hssl seed -d {TARGET.number} -p {PLANS} -w", PRETRAINING.folder / WEIGHTS_FILE)
    journal.run("seed", command, partial(_seed, demo, journal.console))


def _train(journal: Journal, stage: str, command: str, training: Training) -> None:
    """Train, from the last checkpoint where an earlier run was interrupted."""
    resumed = stage not in journal.seconds and any(training.folder.glob("checkpoint_*.pth"))
    journal.run(stage, f"{command}{' --c' * resumed}", partial(train, training, continue_training=resumed))


def _seed(demo: Demo, console: Console) -> None:
    from hssl_nnunet.transfer.report import render
    from hssl_nnunet.transfer.seeding import seed_target

    weights = PRETRAINING.folder / WEIGHTS_FILE
    for report in seed_target(TARGET.number, weights, PLANS, finetuning_overrides=demo.finetuning).values():
        console.print(render(report))


def _train_and_predict(demo: Demo, journal: Journal, arm: str) -> None:
    """One arm: fine-tuning, export, prediction of the test cases by stock nnU-Net."""
    training, model, output = ARMS[arm], demo.model(arm), demo.predictions(arm)
    command = f"hssl finetune {TARGET.number} {CONFIGURATION} {training.fold}{' --scratch' * (arm == 'scratch')}"
    _train(journal, f"finetune {arm}", command, training)
    for stage, made in ((f"export {arm}", model.glob("Dataset*/*")), (f"predict {arm}", output.glob("*.nii.gz"))):
        if not any(made):
            journal.seconds.pop(stage, None)  # what an earlier run made was removed since: made again
    command = _command(f"hssl export -d {TARGET.number} -tr {training.trainer} -o", model)
    journal.run(f"export {arm}", command, partial(_export, training, model))
    (exported,) = model.glob("Dataset*/*")
    images, device = demo.out / ENV_RAW / TARGET.dataset_name / "imagesTs", choose_device(None)
    command = _command("nnUNetv2_predict_from_modelfolder -i", images, "-o", output, "-m", exported, "-device")
    journal.run(f"predict {arm}", f"{command} {device}", partial(_predict, images, output, exported, device))


def _export(training: Training, output: Path) -> None:
    from hssl_nnunet.transfer.export import export_model

    shutil.rmtree(output, ignore_errors=True)
    export_model(training.dataset, CONFIGURATION, training.plans_name, training.trainer, None, output)


def _predict(images: Path, output: Path, model: Path, device: torch.device) -> None:
    """Stock nnU-Net's predictor, one case after the other: its worker processes take longer to start."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    output.mkdir(parents=True, exist_ok=True)
    predictor = nnUNetPredictor(perform_everything_on_device=device.type == "cuda", device=device, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), None)
    predictor.predict_from_files_sequential(str(images), str(output))


def _command(command: str, *words: object) -> str:
    """A command line with words that may need quotes."""
    return f"{command} {shlex.join(map(str, words))}"


# ---------------------------------------------------------------- results


def _show_results(demo: Demo, journal: Journal, seconds: float) -> None:
    from hssl_nnunet.demo.picture import Scores, dice_per_case, draw_demo, results_table

    scores: Scores = {arm: dice_per_case(demo.predictions(arm), demo.truth) for arm in ARMS}
    write_json(demo.out / "dice.json", scores)
    draw_demo(
        demo.out / "demo.png",
        pretraining=PRETRAINING.folder,
        validation={arm: _validation_curve(training.folder) for arm, training in ARMS.items()},
        truth=demo.truth,
        predictions={arm: demo.predictions(arm) for arm in ARMS},
        scores=scores,
    )
    console = journal.console
    console.print()
    console.print(results_table(scores))
    console.print(
        f"{FEW} labelled training cases, {TARGET.num_test} test cases, one seed: this shows that the parts work "
        "together, not which arm is better."
    )
    console.print(f"\nFinished in {seconds / 60:.1f} min. Look at")
    for path, what in (
        (demo.out / "demo.png", "the picture of this run"),
        (PRETRAINING.folder, "curves, embeddings, reconstructions, weights"),
        (PRETRAINING.folder / WEIGHTS_FILE, "`hssl inspect` shows what it holds"),
        (demo.out / "models", "models that stock nnU-Net predicts with"),
    ):
        console.print(f"  {path}  {what}", soft_wrap=True, markup=False)
    console.print(NEXT, markup=False)


def _validation_curve(folder: Path) -> list[float]:
    from hssl_nnunet.transfer.checkpoints import load_checkpoint

    return [float(dice) for dice in load_checkpoint(folder / FINAL_CHECKPOINT)["logging"]["mean_fg_dice"]]


NEXT = """
Next, on your own tasks (nnU-Net's three folders exported, see `hssl doctor`):
  hssl convert_msd -i TaskXX_Name
  hssl plan_and_preprocess -d 1 2 3
  hssl corpus -d 1 2 3 -o 900
  hssl pretrain 900
  hssl seed -d 1 -w .../hssl.safetensors
  hssl finetune 1 3d_fullres 0"""
