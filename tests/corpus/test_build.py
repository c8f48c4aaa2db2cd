import errno
import io
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.run.run_training import get_trainer_from_args
from PIL import Image
from rich.console import Console

from hssl_nnunet.corpus.build import build_corpus, corpus_table
from hssl_nnunet.corpus.integrity import Problem, write_quarantine
from hssl_nnunet.corpus.manifest import read_manifest
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.paths import ENV_PREPROCESSED, ENV_RAW
from hssl_nnunet.plan_schema import corpus_block

HIPPOCAMPUS, SARCOMA, BRAIN = "Dataset004_Hippocampus", "Dataset052_SarcomaMR", "Dataset055_Brain"
IDENTIFIER = "nnUNetPlans_3d_fullres"
SHAPE = (4, 6, 5)


def architecture(n_stages, family="PlainConvUNet"):
    module = {"PlainConvUNet": "unet", "ResidualEncoderUNet": "residual_unet"}.get(family, "primus")
    convs = "n_conv_per_stage" if family == "PlainConvUNet" else "n_blocks_per_stage"
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.{module}.{family}",
        "arch_kwargs": {
            "n_stages": n_stages,
            "features_per_stage": [4] * n_stages,
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * n_stages,
            "strides": [[1, 1, 1]] + [[2, 2, 2]] * (n_stages - 1),
            convs: [1] * n_stages,
            "n_conv_per_stage_decoder": [1] * (n_stages - 1),
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


def plans(name, plans_name, *, n_stages, spacing, channels, family):
    resampling = {f"resampling_fn_{k}": "resample_data_or_seg_to_shape" for k in ("data", "seg", "probabilities")}
    resampling |= {f"{k}_kwargs": {"is_seg": False} for k in resampling}
    return {
        "dataset_name": name,
        "plans_name": plans_name,
        "original_median_spacing_after_transp": spacing,
        "original_median_shape_after_transp": list(SHAPE),
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {
            "base": {"data_identifier": IDENTIFIER, "spacing": spacing, **resampling},
            "3d_fullres": {
                "inherits_from": "base",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": [2**n_stages] * 3,
                "median_image_size_in_voxels": list(SHAPE),
                "normalization_schemes": ["ZScoreNormalization"] * channels,
                "use_mask_for_norm": [False] * channels,
                "architecture": architecture(n_stages, family),
                "batch_dice": False,
            },
        },
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(c): {"mean": float(c)} for c in range(channels)},
    }


def volume(seed):
    return np.random.default_rng(seed).integers(0, 1000, SHAPE).astype(np.int16)


def write_image(path: Path, seed, spacing=(1.0, 1.0, 1.0)):
    image = sitk.GetImageFromArray(volume(seed))
    image.SetSpacing(spacing[::-1])
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), True)


class Folders:
    """nnU-Net's folders with datasets as `plan_and_preprocess` leaves them; a corpus never opens the .b2nd files."""

    def __init__(self, raw: Path, preprocessed: Path):
        self.raw, self.preprocessed = raw, preprocessed

    def add(self, name, labelled, unlabelled, *, channels=("MRI",), **plan):
        raw, preprocessed = self.raw / name, self.preprocessed / name
        for folder, cases in (("imagesTr", labelled or unlabelled), ("imagesTs", unlabelled if labelled else {})):
            for case, seed in cases.items():
                for channel in range(len(channels)):
                    file = raw / folder / f"{case}_{channel:04d}.nii.gz"
                    write_image(file, seed + 100 * channel, plan["spacing"])
                kind = IDENTIFIER if folder == "imagesTr" and labelled else f"{IDENTIFIER}_unlabelled"
                (preprocessed / kind).mkdir(parents=True, exist_ok=True)
                (preprocessed / kind / f"{case}.b2nd").touch()
        if labelled:
            (raw / "labelsTr").mkdir()
            for case in labelled:
                (raw / "labelsTr" / f"{case}.nii.gz").touch()
        dataset_json = {
            "channel_names": {str(i): c for i, c in enumerate(channels)},
            "labels": {"background": 0, "a": 1} if labelled else {},
            "numTraining": len(labelled),
            "file_ending": ".nii.gz",
        }
        (raw / "dataset.json").write_text(json.dumps(dataset_json))
        self.write_plans(name, **plan)

    def write_plans(
        self, name, plans_name="nnUNetPlans", *, n_stages=3, spacing=(1.0, 1.0, 1.0), family="PlainConvUNet"
    ):
        channels = len(json.loads((self.raw / name / "dataset.json").read_text())["channel_names"])
        content = plans(name, plans_name, n_stages=n_stages, spacing=spacing, channels=channels, family=family)
        (self.preprocessed / name / f"{plans_name}.json").write_text(json.dumps(content))


@pytest.fixture
def folders(nnunet_folders):
    """Three domains: labelled with test images, two channels, and no mask at all."""
    made = Folders(nnunet_folders[ENV_RAW], nnunet_folders[ENV_PREPROCESSED])
    made.add(HIPPOCAMPUS, {"h_1": 1, "h_2": 2}, {"h_3": 3}, n_stages=3, spacing=[1.0, 1.0, 1.0])
    made.add(SARCOMA, {"STS_1": 11, "STS_2": 12}, {}, channels=("T1", "T2"), n_stages=4, spacing=[3.0, 1.0, 1.0])
    made.add(BRAIN, {}, {"p1_a": 21, "p1_b": 22, "STS_2": 23}, n_stages=3, spacing=[2.0, 1.0, 1.0])
    return made


def build(**options):
    return build_corpus([4, "052", BRAIN], 900, "Test", **options)


def keys(rows):
    return [(r.domain, r.case, r.channel) for r in rows]


def test_manifest_lists_every_preprocessed_image_once(folders):
    report = build()
    rows = read_manifest(report.folder / "manifest.csv")
    assert report.exit_code == 0 and report.problems == ()
    cases = [(0, "h_1", 0), (0, "h_2", 0), (0, "h_3", 0), (1, "STS_1", 0), (1, "STS_1", 1), (1, "STS_2", 0)]
    assert keys(rows) == [*cases, (1, "STS_2", 1), (2, "STS_2", 0), (2, "p1_a", 0), (2, "p1_b", 0)]
    assert [r.labelled for r in rows] == [True, True, False] + [True] * 4 + [False] * 3
    for row in rows:
        assert (folders.preprocessed / row.preprocessed).is_file()
        assert row.shape == SHAPE
        assert row.groups == report.block.domains[row.domain].groups
        assert row.dataset_name == report.block.domains[row.domain].dataset_name
    assert rows[3].spacing_mm == (3.0, 1.0, 1.0)
    assert rows[3].content_hash != rows[4].content_hash
    assert not list(report.folder.rglob("*.b2nd"))


def test_plans_carry_the_domains_and_read_back(folders):
    report = build(pretraining_overrides={"num_epochs": 7, "warmup_epochs": 2, "loss": {"tau": 0.25}})
    path = report.folder / "nnUNetPlans.json"
    block = corpus_block(json.loads(path.read_text()), path)
    assert block == report.block
    assert [d.num_images for d in block.domains] == [3, 4, 3]
    assert [d.groups[-1] for d in block.domains] == ["MR", "MR", "MR"]
    assert block.domains[1].architecture == architecture(4)
    assert block.domains[1].spacing == (3.0, 1.0, 1.0)
    assert (block.pretraining.num_epochs, block.pretraining.loss.tau) == (7, 0.25)


def test_stock_trainer_accepts_the_corpus(folders):
    report = build()
    trainer = get_trainer_from_args("900", "3d_fullres", "all", device=torch.device("cpu"))
    assert trainer.plans_manager.dataset_name == report.dataset_name == "Dataset900_Test"
    configuration = trainer.configuration_manager
    assert configuration.patch_size == [16, 16, 16]  # the deepest domain's
    assert configuration.previous_stage_name is None
    assert configuration.normalization_schemes == ["ZScoreNormalization"]  # one channel, as the corpus' dataset.json
    assert trainer.label_manager.num_segmentation_heads == 2
    network = trainer.build_network_architecture(trainer.plans_manager, configuration, 1, 2, False)
    assert network(torch.zeros(1, 1, 16, 16, 16)).shape == (1, 2, 16, 16, 16)
    for name in ("dataset.json", "dataset_fingerprint.json"):  # stock training copies both
        assert json.loads((report.folder / name).read_text())


def test_fingerprint_and_picture(folders):
    report = build()
    content = json.loads((report.folder / "hssl_fingerprint.json").read_text())
    assert content["all"]["num_images"] == 10 == sum(d["num_images"] for d in content["domains"].values())
    assert content["all"]["anisotropy"]["maximum"] == [3.0]
    assert content["domains"][BRAIN]["field_of_view_mm"]["median"] == [8.0, 6.0, 5.0]
    with Image.open(report.folder / "hssl_fingerprint.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


def test_table_has_a_line_for_each_domain(folders):
    console = Console(width=200, file=io.StringIO())
    console.print(corpus_table(build()))
    line = next(t for t in console.file.getvalue().splitlines() if SARCOMA in t)
    for text in ("3 / 1 / 1", "3.0", "16 x 16 x 16", " 4 ", "MR"):
        assert text in line


def test_a_bad_image_is_left_out_reported_and_picked_up_once_repaired(folders):
    good = build().folder / "manifest.csv"
    expected = good.read_text()
    image = folders.raw / SARCOMA / "imagesTr" / "STS_1_0001.nii.gz"
    content = image.read_bytes()
    image.write_bytes(content[:-20])
    report = build(overwrite=True)
    assert report.exit_code == 3
    (problem,) = report.problems
    assert (problem.case, problem.file) == ("STS_1", str(image))
    assert "truncated" in str(problem)
    assert [k for k in keys(read_manifest(good)) if k[0] == 1] == [(1, "STS_2", 0), (1, "STS_2", 1)]
    image.write_bytes(content)
    assert build(overwrite=True).exit_code == 0
    assert good.read_text() == expected


def test_missing_preprocessed_missing_channel_and_quarantined_cases_are_reported(folders):
    (folders.preprocessed / HIPPOCAMPUS / IDENTIFIER / "h_1.b2nd").unlink()
    (folders.raw / SARCOMA / "imagesTr" / "STS_1_0001.nii.gz").unlink()
    image = folders.raw / BRAIN / "imagesTr" / "p1_a_0000.nii.gz"
    quarantined = Problem(BRAIN, "p1_a", str(image), "the image is upside down", "Turn it.")
    write_quarantine(BRAIN, [quarantined])
    report = build()
    assert report.exit_code == 3
    not_preprocessed, channel, from_quarantine = report.problems
    assert "not preprocessed" in str(not_preprocessed) and "plan_and_preprocess -d 4" in str(not_preprocessed)
    assert "1 channel(s), but dataset.json names 2" in str(channel)
    assert from_quarantine == quarantined
    cases = {k[:2] for k in keys(read_manifest(report.folder / "manifest.csv"))}
    assert cases == {(0, "h_2"), (0, "h_3"), (1, "STS_2"), (2, "STS_2"), (2, "p1_b")}


def test_a_quarantined_test_image_does_not_take_the_training_case_of_its_name_along(folders):
    twin = folders.raw / HIPPOCAMPUS / "imagesTs" / "h_1_0000.nii.gz"
    write_image(twin, 4)
    quarantined = Problem(HIPPOCAMPUS, "h_1", str(twin), "imagesTr holds a case of the same name", "Rename it.")
    write_quarantine(HIPPOCAMPUS, [quarantined])
    report = build()
    assert report.problems == (quarantined,)
    rows = read_manifest(report.folder / "manifest.csv")
    assert [r.labelled for r in rows if r.case == "h_1"] == [True]


def test_a_case_with_a_quarantined_mask_is_left_out(folders):
    mask = folders.raw / HIPPOCAMPUS / "labelsTr" / "h_2.nii.gz"
    write_quarantine(HIPPOCAMPUS, [Problem(HIPPOCAMPUS, "h_2", str(mask), "the mask holds value 9", "Correct it.")])
    assert [str(p) for p in build().problems] == [f"{HIPPOCAMPUS} h_2: the mask holds value 9. Correct it. ({mask})"]


def test_exclusion_reaches_patients_and_copies_in_every_domain(folders, tmp_path):
    shutil.copy(
        folders.raw / SARCOMA / "imagesTr" / "STS_2_0001.nii.gz", folders.raw / HIPPOCAMPUS / "imagesTs/h_3_0000.nii.gz"
    )
    exclude = tmp_path / "test_cases.txt"
    exclude.write_text(f"{BRAIN}:STS_2\npatient:p1\n")
    with pytest.raises(HSSLError, match=f"No image of {BRAIN} is left"):
        build(exclude_file=exclude, patient_regex=[r"55=(p\d|STS_\d)"])
    exclude.write_text(f"{BRAIN}:STS_2\n")
    report = build(exclude_file=exclude, patient_regex=[r"55=(p\d|STS_\d)"])
    rows = read_manifest(report.folder / "manifest.csv")
    assert [(r.domain, r.case, r.patient) for r in rows if r.domain != 1] == [
        (0, "h_1", "h_1"),
        (0, "h_2", "h_2"),
        (2, "p1_a", "p1"),
        (2, "p1_b", "p1"),
    ]
    assert {r.case for r in rows if r.domain == 1} == {"STS_1"}
    assert any(f"takes 1 case(s) out of {HIPPOCAMPUS}: h_3" in n for n in report.notes)


def test_a_copy_of_an_excluded_image_is_left_out_under_any_name(folders):
    rows = read_manifest(build().folder / "manifest.csv")
    content = next(r.content_hash for r in rows if r.case == "p1_a")
    report = build(exclude_contents={content, "of no image"}, overwrite=True)
    left = read_manifest(report.folder / "manifest.csv")
    assert keys(left) == [key for key in keys(rows) if key[1] != "p1_a"]
    assert any(f"takes 1 case(s) out of {BRAIN}: p1_a" in n for n in report.notes)


def test_the_second_copy_of_an_image_is_left_out(folders):
    write_image(folders.raw / BRAIN / "imagesTr" / "p1_b_0000.nii.gz", 2)  # the voxels of h_2
    report = build()
    rows = read_manifest(report.folder / "manifest.csv")
    assert len({r.content_hash for r in rows}) == len(rows) == 9
    assert (2, "p1_b", 0) not in keys(rows) and (0, "h_2", 0) in keys(rows)
    assert any("p1_b channel 0 (= h_2 channel 0)" in n for n in report.notes)
    assert report.exit_code == 0


def test_preprocessed_cases_without_raw_image_are_noted(folders):
    (folders.raw / HIPPOCAMPUS / "imagesTr" / "h_2_0000.nii.gz").unlink()
    (folders.preprocessed / HIPPOCAMPUS / IDENTIFIER / "h_1_seg.b2nd").touch()
    report = build()
    (note,) = [n for n in report.notes if "no raw image" in n]
    assert "1 preprocessed case(s)" in note and note.endswith("h_2.")


def test_groups_from_a_file_reach_plans_and_manifest(folders, tmp_path):
    file = tmp_path / "groups.json"
    file.write_text(json.dumps({"groups": {"4": ["head"], "52": ["limb"], "55": ["head"]}}))
    report = build(hierarchy_file=file)
    assert [d.groups for d in report.block.domains] == [("head",), ("limb",), ("head",)]
    assert {r.groups for r in read_manifest(report.folder / "manifest.csv") if r.domain == 2} == {("head",)}


def test_an_existing_corpus_is_replaced_only_on_request(folders):
    report = build()
    for name in (HIPPOCAMPUS, SARCOMA, BRAIN):
        folders.write_plans(name, "OtherPlans")
    with pytest.raises(HSSLError, match="--overwrite"):
        build()
    (report.folder / "groups.json").write_text('{"groups": {}}')
    (report.folder / "notes.json").write_text("no JSON")
    build(overwrite=True, plans_name="OtherPlans")
    assert (report.folder / "groups.json").read_text() == '{"groups": {}}'  # the user's
    assert (report.folder / "notes.json").read_text() == "no JSON"
    assert not (report.folder / "nnUNetPlans.json").exists()  # its block would not fit the new manifest
    assert (report.folder / "OtherPlans.json").exists()


def test_what_was_repaired_since_the_quarantine_waits_for_preprocessing_alone(folders):
    bad, good = (folders.raw / HIPPOCAMPUS / "imagesTr" / f"{case}_0000.nii.gz" for case in ("h_1", "h_2"))
    found = [Problem(HIPPOCAMPUS, p.name[:3], str(p), "the image is upside down", "Turn it.") for p in (bad, good)]
    write_quarantine(HIPPOCAMPUS, found)
    assert list(build().problems) == found
    time.sleep(0.01)
    write_image(bad, 31)
    report = build(overwrite=True)
    repaired, still = report.problems
    assert (repaired.case, repaired.what) == ("h_1", "not preprocessed")
    assert repaired.remedy == report.repair_command.join(("Run `", "`."))
    assert still == found[1]
    (folders.raw / HIPPOCAMPUS / "imagesTr" / "twin.txt").touch()  # the folder's other files are other than they were
    (problem,) = build(overwrite=True).problems
    assert (problem.case, problem.what) == ("h_1, h_2", "not preprocessed")


def test_the_command_that_repairs_is_that_of_the_datasets_with_problems(folders):
    for name in (HIPPOCAMPUS, SARCOMA, BRAIN):
        folders.write_plans(name, "nnUNetCPUPlans")
    for name, case in ((HIPPOCAMPUS, "h_1"), (SARCOMA, "STS_1")):
        (folders.preprocessed / name / IDENTIFIER / f"{case}.b2nd").unlink()
    report = build(plans_name="nnUNetCPUPlans")
    assert report.repair_command == "hssl plan_and_preprocess -d 4 52 --preset cpu"


def test_patients_in_several_datasets_are_noted_and_may_be_told_apart(folders, tmp_path):
    exclude = tmp_path / "exclude.txt"
    exclude.write_text("55:STS_2\n")
    (note,) = [n for n in build().notes if "patient name" in n]
    assert f"1 patient name(s) occur in several datasets, as STS_2 in {SARCOMA} and {BRAIN}" in note
    assert "--patient_regex 55=unique" in note
    report = build(overwrite=True, exclude_file=exclude)
    assert note in report.notes and any(f"takes 1 case(s) out of {SARCOMA}: STS_2" in n for n in report.notes)
    report = build(overwrite=True, patient_regex=["55=unique"], exclude_file=exclude)
    rows = read_manifest(report.folder / "manifest.csv")
    assert {(r.case, r.patient) for r in rows if r.domain == 2} == {(c, f"{BRAIN}:{c}") for c in ("p1_a", "p1_b")}
    assert {r.case for r in rows if r.domain == 1} == {"STS_1", "STS_2"}  # the stranger stays
    assert not any("patient name" in n for n in report.notes)


def test_an_id_of_another_dataset_is_refused_and_left_untouched(folders):
    other = folders.preprocessed / "Dataset900_Test"
    other.mkdir()
    (other / "dataset.json").write_text("{}")
    with pytest.raises(HSSLError, match="is not a corpus"):
        build(overwrite=True)
    shutil.move(other, folders.preprocessed / "Dataset900_Other")
    with pytest.raises(HSSLError, match="id 900 is taken by .*Dataset900_Other"):
        build(overwrite=True)
    assert (folders.preprocessed / "Dataset900_Other" / "dataset.json").read_text() == "{}"
    with pytest.raises(HSSLError, match="id 4 is taken"):
        build_corpus([4, 52], 4, "Test")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"datasets": [4, 4, 52]}, ["each once", HIPPOCAMPUS]),
        ({"datasets": []}, ["at least one"]),
        ({"datasets": [4, 77]}, ["'77' was not found"]),
        (
            {"plans_name": "OtherPlans"},
            [
                "no OtherPlans.json",
                "It has nnUNetPlans",
                "-pl PLANNER -over",
                "plan_and_preprocess -d 4 -p OtherPlans`",
            ],
        ),
        ({"configuration": "2d"}, ["no configuration '2d'", "3d_fullres", "one of these with -c"]),
        ({"plans_name": "nnUNetCPUPlans"}, ["`hssl plan_and_preprocess -d 4 --preset cpu`"]),
        ({"name": "a b"}, ["letters, digits"]),
        ({"output_id": 0}, ["1 to 999"]),
        ({"pretraining_overrides": {"loss": {"taw": 1}}}, ["loss.taw"]),
        ({"patient_regex": ["4=(.*)_x"]}, ["no patient in case 'h_1'"]),
    ],
)
def test_wrong_input_is_named_and_nothing_is_written(folders, arguments, words):
    with pytest.raises(HSSLError) as error:
        build_corpus(**({"datasets": [4, 52], "output_id": 900} | arguments))
    for word in words:
        assert word in str(error.value)
    assert not list(folders.preprocessed.glob("Dataset900*"))


def test_the_plans_that_all_datasets_have_are_taken(folders):
    names = (HIPPOCAMPUS, SARCOMA, BRAIN)
    for name in names:
        folders.write_plans(name, "nnUNetCPUPlans")
    assert build().block.domains[0].plans_name == "nnUNetPlans"
    for name in names:
        (folders.preprocessed / name / "nnUNetPlans.json").unlink()
    seeded = json.loads((folders.preprocessed / BRAIN / "nnUNetCPUPlans.json").read_text()) | {"hssl": {}}
    for name in names:
        (folders.preprocessed / name / "nnUNetCPUPlans_HSSL.json").write_text(json.dumps(seeded))
    report = build(overwrite=True)
    assert {d.plans_name for d in report.block.domains} == {"nnUNetCPUPlans"}
    assert (report.folder / "nnUNetCPUPlans.json").is_file()
    (folders.preprocessed / BRAIN / "nnUNetCPUPlans.json").unlink()
    with pytest.raises(HSSLError, match=f"{BRAIN} has no nnUNetCPUPlans.json.*plan_and_preprocess -d 55 --preset cpu`"):
        build(overwrite=True)
    for name in names:
        for plans_name in ("nnUNetCPUPlans", "Mine"):
            folders.write_plans(name, plans_name)
    with pytest.raises(HSSLError, match="all have the plans Mine, nnUNetCPUPlans. Choose one with -p"):
        build(overwrite=True)


def test_plans_of_the_users_own_are_preprocessed_with_them(folders):
    for name in (HIPPOCAMPUS, SARCOMA):
        folders.write_plans(name, "Mine")
    (folders.preprocessed / HIPPOCAMPUS / f"{IDENTIFIER}_unlabelled" / "h_3.b2nd").unlink()
    (problem,) = build_corpus([4, 52], 900, plans_name="Mine").problems
    assert problem.remedy == "Run `hssl plan_and_preprocess -d 4 -p Mine`."


def test_families_are_not_mixed_and_unknown_ones_refused(folders):
    folders.write_plans(SARCOMA, family="ResidualEncoderUNet")
    with pytest.raises(HSSLError, match="one family.*PlainConvUNet, .*ResidualEncoderUNet"):
        build()
    folders.write_plans(HIPPOCAMPUS, family="Primus")
    with pytest.raises(HSSLError, match="PlainConvUNet or ResidualEncoderUNet.*Primus"):
        build_corpus([4], 900)


def test_a_preprocessed_dataset_without_raw_images_is_an_error(folders):
    shutil.rmtree(folders.raw / BRAIN / "imagesTr")
    with pytest.raises(HSSLError, match="holds no image"):
        build()
    shutil.rmtree(folders.raw / BRAIN)
    with pytest.raises(HSSLError, match=f"{BRAIN} is not in"):
        build()


def test_a_corpus_is_no_domain_of_another(folders):
    name = build().dataset_name
    with pytest.raises(HSSLError, match=f"{name} is a corpus.*datasets that it joins"):
        build_corpus([900, 4], 901)


def test_a_dataset_whose_id_is_no_number(folders):
    folders.add("Dataset5x_Odd", {}, {"a": 31}, n_stages=3, spacing=[1.0, 1.0, 1.0])
    with pytest.raises(HSSLError, match="'Dataset5x_Odd' is not a dataset name"):
        build_corpus([4, "Dataset5x_Odd"], 900)


def test_cases_that_lack_preprocessing_share_one_command(folders):
    for case in ("STS_1", "STS_2"):
        (folders.preprocessed / SARCOMA / IDENTIFIER / f"{case}.b2nd").unlink()
    folders.add("Dataset056_Late", {}, {f"c{i:02d}": 40 + i for i in range(13)}, n_stages=3, spacing=[1.0, 1.0, 1.0])
    for path in sorted((folders.preprocessed / "Dataset056_Late").rglob("*.b2nd"))[:-1]:
        path.unlink()
    for name in (HIPPOCAMPUS, SARCOMA, "Dataset056_Late"):
        folders.write_plans(name, "nnUNetCPUPlans")
    with pytest.raises(HSSLError, match="No image of Dataset052") as error:
        build_corpus([4, 52], 900, plans_name="nnUNetCPUPlans")
    assert str(error.value).count("plan_and_preprocess -d 52 --preset cpu") == 1
    (late,) = build_corpus([4, 56], 900, plans_name="nnUNetCPUPlans").problems
    assert late.remedy == "Run `hssl plan_and_preprocess -d 56 --preset cpu`."
    assert late.case.startswith("c00, c01, ") and late.case.endswith("c09 and 2 more")
    assert Path(late.file) == folders.preprocessed / "Dataset056_Late"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda plans: [], "all of it"),
        (lambda plans: {}, "plans_name: Field required"),
        (lambda plans: plans["configurations"]["3d_fullres"].pop("architecture"), "neither `architecture`"),
        (lambda plans: plans["configurations"]["3d_fullres"]["architecture"].pop("arch_kwargs"), "arch_kwargs"),
        (lambda plans: plans["configurations"]["3d_fullres"].pop("patch_size"), "configuration.patch_size"),
        (lambda plans: plans.pop("foreground_intensity_properties_per_channel"), "foreground_intensity"),
    ],
)
@pytest.mark.filterwarnings("ignore:Detected old nnU-Net plans")
def test_damaged_plans_are_named_with_the_command(folders, damage, said):
    path = folders.preprocessed / HIPPOCAMPUS / "nnUNetPlans.json"
    content = json.loads(path.read_text())
    changed = damage(content)
    path.write_text(json.dumps(changed if changed in ([], {}) else content))
    with pytest.raises(HSSLError, match=rf"(?s){path}.*{said}.*Run `hssl plan_and_preprocess -d 4`"):
        build()


def test_what_cannot_be_removed_is_an_error_that_says_so(folders, monkeypatch):
    outdated = build().folder / "nnUNetPlans.json"

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)  # root may remove everything
    with pytest.raises(HSSLError, match=f"Cannot remove {outdated}"):
        build(overwrite=True)
