import random

import pytest

from hssl_nnunet.corpus.patients import (
    Subject,
    excluded_subjects,
    find_dataset,
    parse_patient_regexes,
    patient_of,
    read_exclusions,
)
from hssl_nnunet.errors import HSSLError

CT, MR, CINE = "Dataset051_SarcomaCT", "Dataset052_SarcomaMR", "Dataset054_CineLV"
NAMES = [CT, MR, CINE]


def subject(dataset, case, patient=None, *hashes):
    return Subject(dataset, case, patient or case, frozenset(hashes))


SUBJECTS = [
    subject(CT, "STS_001", None, "h0"),
    subject(MR, "STS_001", None, "h1", "h2"),
    subject(MR, "STS_002", None, "h3"),
    subject(CINE, "SC_1_ED", "SC_1", "h4"),
    subject(CINE, "SC_1_ES", "SC_1", "h5"),
    subject(CINE, "SC_2_ED", "SC_2", "h3"),  # the voxels of STS_002 under another name
    subject(CINE, "SC_3_ED", "SC_3"),  # could not be read
]


@pytest.mark.parametrize(
    ("regex", "case", "patient"),
    [
        ("54=(.*)_", "SC-HF-I-01_ph08", "SC-HF-I-01"),
        (r"54=patient\d+", "patient12s1_T1W", "patient12"),
        (r"Dataset054_CineLV=_(\d+)=", "a_12=b", "12"),  # the first `=` ends the dataset
        ("51=(.*)_", "SC-HF-I-01_ph08", "SC-HF-I-01_ph08"),  # of another dataset: the case name
        ("cinelv=(.*)_", "SC-HF-I-01_ph08", "SC-HF-I-01"),
        ("54=unique", "SC-HF-I-01_ph08", f"{CINE}:SC-HF-I-01_ph08"),
        ("54=(?P<unique>.*)_", "SC-HF-I-01_ph08", f"{CINE}:SC-HF-I-01"),
        ("54=(unique|SC).*", "SC-HF-I-01_ph08", "SC"),
    ],
)
def test_patient_is_the_group_or_the_match_or_the_case(regex, case, patient):
    assert patient_of(case, CINE, parse_patient_regexes([regex], NAMES)) == patient


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["54:(.*)_"], "expected DATASET=REGEX"),
        (["4=(.*)_"], "expected DATASET=REGEX"),
        (["54="], "expected DATASET=REGEX"),
        (["54=(.*_"], "not a valid regular expression"),
        (["54=a", "Dataset054_CineLV=b"], "has a regex already"),
    ],
)
def test_bad_patient_regexes(texts, message):
    with pytest.raises(HSSLError, match=message) as error:
        parse_patient_regexes(texts, NAMES)
    assert repr(texts[-1]) in str(error.value)


@pytest.mark.parametrize("regex", [r"54=(\d+)", "54=(x)?"])
def test_a_case_without_a_patient_is_named(regex):
    with pytest.raises(HSSLError, match="no patient in case 'abc' of Dataset054_CineLV"):
        patient_of("abc", CINE, parse_patient_regexes([regex], NAMES))


@pytest.mark.parametrize(
    ("line", "excluded"),
    [
        ("STS_001", {0, 1}),
        ("51:STS_001", {0, 1}),  # the patient's MR goes too
        ("SarcomaCT:STS_001", {0, 1}),
        (f"{CINE}:SC_1_ED", {3, 4}),
        ("patient:SC_1", {3, 4}),
        ("hash:h2", {0, 1}),
        ("STS_002", {2, 5}),  # and its copy under another name
        ("patient:SC_2", {2, 5}),
        ("SC_3_ED", {6}),
    ],
)
def test_a_line_takes_the_patient_and_the_copies_along(line, excluded):
    assert excluded_subjects(SUBJECTS, [line], "ex.txt") == excluded


def test_contents_take_the_patient_along_and_need_not_occur():
    subjects = [subject(CT, "a", "p", "h1"), subject(CT, "b", "p", "h2"), subject(CT, "c", "q", "h3", "h4")]
    assert excluded_subjects(subjects, [], None, {"h1", "nowhere"}) == {0, 1}
    assert excluded_subjects(subjects, ["a"], "ex.txt", {"h4"}) == {0, 1, 2}
    assert excluded_subjects(subjects, [], None, {"nowhere"}) == set()


def test_lines_that_match_nothing_are_all_listed():
    lines = ["STS_001", "STS_009", "52:SC_1_ED", "patient:SC_1_ED", "hash:h9", "3:STS_001"]
    with pytest.raises(HSSLError) as error:
        excluded_subjects(SUBJECTS, lines, "ex.txt")
    assert all(repr(line) in str(error.value) for line in lines[1:])
    assert repr(lines[0]) not in str(error.value)


@pytest.mark.parametrize("seed", range(20))
def test_exclusion_leaves_nobody_related_to_the_excluded(seed):
    draw = random.Random(seed)
    subjects = [
        subject(CT, f"c{i}", f"p{draw.randrange(15)}", *(f"h{draw.randrange(60)}" for _ in range(2))) for i in range(40)
    ]
    excluded = excluded_subjects(subjects, ["c0", "c1"], "ex.txt")
    # reference: connected components by brute force
    reached, border = set(), [0, 1]
    while border:
        i = border.pop()
        reached.add(i)
        for j, other in enumerate(subjects):
            related = other.patient == subjects[i].patient or other.hashes & subjects[i].hashes
            if related and j not in reached:
                border.append(j)
    assert excluded == reached


def test_a_name_that_fits_two_datasets_means_neither():
    names = ["Dataset001_Liver", "Dataset002_Liver", "Dataset003_Patient"]
    assert find_dataset("liver", names) is None
    assert find_dataset("002", names) == "Dataset002_Liver"
    assert find_dataset("dataset001_liver", names) == "Dataset001_Liver"
    subjects = [subject(names[0], "a", "p"), subject(names[2], "p", "q")]
    assert excluded_subjects(subjects, ["patient:p"], "ex.txt") == {0}  # the word, not the dataset of that name


def test_exclusion_file(tmp_path):
    path = tmp_path / "ex.txt"
    path.write_text("# test cases\n\nSTS_001  # the first\n 54:SC_1_ED\n")
    assert read_exclusions(path) == ["STS_001", "54:SC_1_ED"]
    path.write_text("# nothing\n")
    with pytest.raises(HSSLError, match="holds no line"):
        read_exclusions(path)
    with pytest.raises(HSSLError, match="cannot be read"):
        read_exclusions(tmp_path / "missing.txt")
