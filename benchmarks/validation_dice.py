"""Dice of a benchmark's trained arms on cases that neither trained nor test: values are chosen on these.

    python benchmarks/validation_dice.py FOLDER [FOLDER...] --arms hssl [ARM...] [--cases 10] [--out ....json]

FOLDER is what `hssl benchmark run -o` wrote; several of one splits file, for example one for each learning rate. Of
every target, budget and seed that all arms have in all folders, the last checkpoint predicts whole cases, without
mirroring and in the preprocessed voxels: the first ones, by the seed's order, of patients of whom the run has no label.
Pretraining may have seen their images, as it has in use; no test case is read.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
import statistics
import sys
from pathlib import Path

import torch
from common import about

from hssl_nnunet.benchmark.plan import BenchmarkPlan
from hssl_nnunet.benchmark.records import RunRecord, read_records
from hssl_nnunet.benchmark.splits import DatasetSplit, read_splits
from hssl_nnunet.benchmark.workspace import Workspace
from hssl_nnunet.files import write_json
from hssl_nnunet.launch import set_environment


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    splits = [read_splits(folder) for folder in args.folders]
    if any(s != splits[0] for s in splits):
        sys.exit("The folders differ in splits.json: their runs have other labelled or test cases.")
    variants = list(itertools.product(args.folders, args.arms))
    found = [{key(r): r for r in read_records(folder) if r.arm == arm} for folder, arm in variants]
    common = [k for k in found[0] if all(k in runs for runs in found)]
    rows = []
    for dataset, budget, seed in sorted(common, key=lambda k: (k[2], k[0])):
        cases = unlabelled(splits[0][dataset], [runs[dataset, budget, seed] for runs in found], args.cases)
        if not cases:
            print(
                f"{dataset}, {budget}, seed {seed}: every patient is labelled, nobody is left to look at.", flush=True
            )
            continue
        row: dict[str, object] = {"dataset_name": dataset, "budget": budget, "seed": seed, "cases": cases}
        for (folder, arm), runs in zip(variants, found, strict=True):
            run = runs[dataset, budget, seed]
            dices = dices_of(folder, run, cases)
            label = arm if len(args.folders) == 1 else f"{folder.name} {arm}"
            row[label] = round(100 * statistics.mean(dices), 2)
            row[f"{label}, each"] = [round(100 * d, 1) for d in dices]
        print(row, flush=True)
        rows.append(row)
        told = about(torch.device("cpu"), args.threads)
        write_json(args.out, {"command": f"python {shlex.join(sys.argv)}", **told, "runs": rows})


def key(record: RunRecord) -> tuple[str, str, int]:
    return record.dataset_name, record.budget, record.seed


def unlabelled(split: DatasetSplit, runs: list[RunRecord], count: int) -> list[str]:
    """The first cases in the order of the runs' seed of patients of whom none of them has a label."""
    known = {split.patients[case] for run in runs for case in run.training_cases}
    return [case for case in split.order[runs[0].seed] if split.patients[case] not in known][:count]


def dices_of(folder: Path, run: RunRecord, cases: list[str]) -> list[float]:
    """Mean Dice of each case, in [0, 1]."""
    workspace = Workspace(folder.resolve())
    os.environ.update(workspace.environment)
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    from hssl_nnunet.training.full_validation import whole_case_dices

    plan = workspace.plan()
    trained, fold = trained_folder(workspace, plan, run)
    predictor = nnUNetPredictor(
        use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False, perform_everything_on_device=False
    )
    predictor.initialize_from_trained_model_folder(str(trained), (fold,), "checkpoint_final.pth")
    predictor.network.load_state_dict(predictor.list_of_parameters[0])
    labels = predictor.plans_manager.get_label_manager(predictor.dataset_json)
    data_folder = workspace.preprocessed / run.dataset_name / predictor.configuration_manager.data_identifier
    return whole_case_dices(predictor, nnUNetDatasetBlosc2(str(data_folder), cases), labels, cases)


def trained_folder(workspace: Workspace, plan: BenchmarkPlan, run: RunRecord) -> tuple[Path, int]:
    """nnU-Net's folder of a run's training, and its fold."""
    name = f"{plan.plans_name}_{run.arm}_s{run.seed}"
    fold = workspace.folds(plan).index((run.seed, run.budget))
    (found,) = (workspace.results / run.dataset_name).glob(f"*__{name}__{plan.configuration}")
    return found, fold


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--arms", nargs="+", default=["hssl"])
    parser.add_argument("--cases", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/validation_dice.json"))
    return parser.parse_args()


if __name__ == "__main__":
    set_environment()
    main()
