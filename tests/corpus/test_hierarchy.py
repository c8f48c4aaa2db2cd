import itertools
import json
from dataclasses import replace

import pytest

from hssl_nnunet.corpus.fingerprint import ImageFingerprint
from hssl_nnunet.corpus.hierarchy import build_hierarchy, derive_groups, read_hierarchy
from hssl_nnunet.corpus.modality import modality_of
from hssl_nnunet.corpus.summary import summarise
from hssl_nnunet.errors import HSSLError

# nnU-Net's names of the ten tasks, with the channel names of their dataset.json
MSD = {
    "Dataset001_BrainTumour": ["FLAIR", "T1w", "t1gd", "T2w"],
    "Dataset002_Heart": ["MRI"],
    "Dataset003_Liver": ["CT"],
    "Dataset004_Hippocampus": ["MRI"],
    "Dataset005_Prostate": ["T2", "ADC"],
    "Dataset006_Lung": ["CT"],
    "Dataset007_Pancreas": ["CT"],
    "Dataset008_HepaticVessel": ["CT"],
    "Dataset009_Spleen": ["CT"],
    "Dataset010_Colon": ["CT"],
}
FLAT, SKEWED = (0, 1, 2, 3, 4, 5, 6), (0, 0.02, 0.05, 0.1, 0.2, 0.5, 6)


def domain(modality="MR", spacing=(1.0, 1.0, 1.0), shape=(100, 100, 100), percentiles=FLAT):
    image = ImageFingerprint(
        spacing_mm=spacing, shape=shape, orientation="RAS", percentiles=percentiles, content_hash="0"
    )
    return summarise([image], [modality])


def partition(groups, level=0):
    """The sets of domains that are together, whatever their groups are called."""
    return {frozenset(n for n in groups if groups[n][level] == g[level]) for g in groups.values()}


def write(path, groups):
    path.write_text(json.dumps({"groups": groups}))
    return path


def test_the_table_knows_the_ten_msd_tasks_and_their_modalities():
    domains = {}
    for name, channel_names in MSD.items():
        images = [domain() for _ in channel_names]
        domains[name] = replace(images[0], modality="+".join({modality_of(c) for c in channel_names}))
    groups, notes = build_hierarchy(domains)
    assert notes == []
    assert {g[1] for g in groups.values()} == {"CT", "MR"}
    assert groups["Dataset001_BrainTumour"] == groups["Dataset004_Hippocampus"] == ("MR brain", "MR")
    assert not any("mm" in g[0] for g in groups.values())  # none had to be derived


def test_names_match_in_any_case_and_a_wrong_modality_is_derived_and_noted():
    groups, notes = build_hierarchy({"Dataset104_HIPPOCAMPUS": domain("MR"), "Dataset103_Liver": domain("MR")})
    assert groups["Dataset104_HIPPOCAMPUS"] == ("MR brain", "MR")
    assert groups["Dataset103_Liver"] == ("MR 1.0mm #1", "MR")
    assert "Dataset103_Liver is called like an MSD task of modality CT" in notes[0]


def test_derived_groups_follow_the_modality_then_size_then_intensity():
    domains = {
        "Dataset901_a": domain("MR"),
        "Dataset902_near": domain("MR", spacing=(1.2, 1.1, 1.0)),
        "Dataset903_thick": domain("MR", spacing=(8.0, 1.2, 1.2), shape=(12, 250, 250)),
        "Dataset904_small": domain("MR", shape=(30, 30, 30)),
        "Dataset905_dark": domain("MR", percentiles=SKEWED),
        "Dataset906_CT": domain("CT"),
    }
    groups = derive_groups(domains)
    assert partition(groups, 1) == {frozenset(list(domains)[:5]), frozenset({"Dataset906_CT"})}
    together = frozenset({"Dataset901_a", "Dataset902_near"})
    assert partition(groups) == {together, *(frozenset({n}) for n in domains if n not in together)}
    assert groups["Dataset901_a"][0] == "MR 1.0mm #1"


def test_derived_groups_do_not_depend_on_the_order_of_domains_or_axes():
    spacings = [(1.0, 1.0, 1.0), (3.0, 1.0, 1.0), (3.3, 0.9, 0.9), (8.0, 1.2, 1.2), (2.0, 2.0, 2.0)]
    shapes = [(40, 50, 40), (50, 200, 200), (60, 150, 140), (9, 256, 256), (90, 90, 90)]
    domains = {f"Dataset9{i:02d}_x": domain("MR", s, n) for i, (s, n) in enumerate(zip(spacings, shapes, strict=True))}
    expected = partition(derive_groups(domains))
    assert 1 < len(expected) < len(domains)
    for order in itertools.permutations(domains):
        assert partition(derive_groups({n: domains[n] for n in order})) == expected
    turned = {n: domain("MR", s[::-1], k[::-1]) for n, s, k in zip(domains, spacings, shapes, strict=True)}
    assert derive_groups(turned) == derive_groups(domains)


def test_a_domain_of_constant_percentiles_is_grouped_too():
    assert derive_groups({"Dataset901_a": domain(percentiles=(1,) * 7), "Dataset902_b": domain()}).keys() == {
        "Dataset901_a",
        "Dataset902_b",
    }


def test_a_level_that_tells_nothing_is_kept_and_noted():
    groups, notes = build_hierarchy({"Dataset004_Hippocampus": domain(), "Dataset002_Heart": domain()})
    assert groups == {"Dataset004_Hippocampus": ("MR brain", "MR"), "Dataset002_Heart": ("MR heart", "MR")}
    assert len(notes) == 2
    assert "level 0" in notes[0] and "alone" in notes[0]
    assert "level 1" in notes[1] and "all domains are in one group" in notes[1]


DOMAINS = {"Dataset004_Hippocampus": domain(), "Dataset051_SarcomaCT": domain("CT"), "Dataset054_CineLV": domain()}


def test_a_users_file_may_name_datasets_by_id_name_or_full_name(tmp_path):
    content = {"54": ["heart", "a", "x"], "sarcomact": ["limb", "b", "x"], "Dataset004_Hippocampus": ["head", "a", "x"]}
    groups, notes = build_hierarchy(DOMAINS, write(tmp_path / "h.json", content))
    assert groups == {
        "Dataset004_Hippocampus": ("head", "a", "x"),
        "Dataset051_SarcomaCT": ("limb", "b", "x"),
        "Dataset054_CineLV": ("heart", "a", "x"),
    }
    assert ["level 0" in notes[0], "level 2" in notes[1], len(notes)] == [True, True, 2]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"4": ["a"], "51": ["b"]}, ["missing: Dataset054_CineLV"]),
        ({"4": ["a"], "51": ["b"], "54": ["c"], "55": ["d"], "x": ["d"]}, ["not in the corpus: 55, x"]),
        ({"4": ["a"], "5": ["b"]}, ["not in the corpus: 5", "missing: Dataset051_SarcomaCT, Dataset054_CineLV"]),
        ({"4": ["a"], "hippocampus": ["b"], "51": ["b"], "54": ["c"]}, ["named twice: Dataset004_Hippocampus"]),
        ({"4": ["a"], "51": ["b", "c"], "54": ["c"]}, ["same number of group levels"]),
        ({"4": ["a;b"], "51": ["b"], "54": ["c"]}, ["groups.4.0"]),
        ({"4": [], "51": [], "54": []}, ["groups.4"]),
    ],
)
def test_faults_of_a_users_file_are_listed(tmp_path, content, words):
    with pytest.raises(HSSLError) as error:
        build_hierarchy(DOMAINS, write(tmp_path / "h.json", content))
    for word in [*words, "h.json"]:
        assert word in str(error.value)


def test_a_name_that_fits_two_datasets_is_ambiguous(tmp_path):
    domains = {"Dataset001_Liver": domain("CT"), "Dataset002_Liver": domain("CT")}
    with pytest.raises(HSSLError, match="ambiguous: Liver"):
        build_hierarchy(domains, write(tmp_path / "h.json", {"Liver": ["a"]}))


@pytest.mark.parametrize("content", [None, "nonsense", "{}"])
def test_a_hierarchy_that_is_none_is_told_with_an_example(tmp_path, content):
    path = tmp_path / "groups.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(HSSLError, match=f'(?s){path} .*{{"groups": {{"Dataset004_Hippocampus".*leave --hierarchy out'):
        read_hierarchy(path, ["Dataset004_Hippocampus"])
