"""The control arm's groups: a permutation that truly moves them, the same in every call."""

from __future__ import annotations

import logging
from collections import Counter
from itertools import combinations, permutations, product

import pytest

from hssl_nnunet.benchmark.pretraining import corpus_name
from hssl_nnunet.benchmark.shuffled_groups import shuffled_groups
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.paths import DATASET_WORDS

Groups = dict[str, tuple[str, ...]]


def named(*groups: tuple[str, ...]) -> Groups:
    return {f"Dataset{i:03d}_D{i}": group for i, group in enumerate(groups, start=1)}


def kept(before: Groups, after: Groups) -> int:
    return sum(before[name] == after[name] for name in before)


def together(groups: Groups) -> set[tuple[int, str, str]]:
    pairs = combinations(groups, 2)
    return {(at, a, b) for a, b in pairs for at, (x, y) in enumerate(zip(groups[a], groups[b], strict=True)) if x == y}


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6, 7, 8, 20])
def test_no_domain_keeps_its_groups_where_all_differ(count: int) -> None:
    before = named(*((f"organ {i}", "MR" if i % 2 else "CT") for i in range(count)))
    after = shuffled_groups(before)
    assert list(after) == list(before) and Counter(after.values()) == Counter(before.values())
    assert kept(before, after) == 0
    assert shuffled_groups(before) == after  # in another process too: no hash decides


def test_with_ties_as_few_domains_keep_their_groups_as_any_permutation_allows() -> None:
    for count in range(2, 7):
        for letters in product("ABC", repeat=count):
            before = named(*((letter, "MR") for letter in letters))
            if len(set(letters)) == 1:
                continue
            fewest = min(sum(a == b for a, b in zip(letters, p, strict=True)) for p in set(permutations(letters)))
            after = shuffled_groups(before)
            assert kept(before, after) == fewest, letters
            assert Counter(after.values()) == Counter(before.values())


def test_domains_that_share_a_group_are_parted_where_that_can_be() -> None:
    decathlon = ["brain", "heart", "liver", "brain", "pelvis", "chest", "liver", "liver", "liver", "liver"]
    before = named(*((organ, "CT" if organ in ("liver", "chest") else "MR") for organ in decathlon))
    after = shuffled_groups(before)
    assert kept(before, after) == 0
    finest = {pair for pair in together(before) if pair[0] == 0}
    assert len(finest) == 11 and len(finest & together(after)) < 5


def test_equal_groups_are_refused_before_anything_is_trained() -> None:
    for count in (1, 2, 5):
        with pytest.raises(HSSLError, match="every domain is in the groups brain, MR"):
            shuffled_groups(named(*[("brain", "MR")] * count))


def test_groups_that_only_change_their_names_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    before = named(("brain", "MR"), ("brain", "MR"), ("liver", "CT"), ("heart", "MR"), ("chest", "CT"))
    with caplog.at_level(logging.WARNING):
        assert together(shuffled_groups(before)) != together(before)
        assert not caplog.records
        assert together(shuffled_groups(named(("brain", "MR"), ("liver", "CT")))) == set()
    assert "no control" in caplog.text


def test_targets_of_one_name_have_corpora_of_their_own() -> None:
    targets = ("Dataset004_Hippocampus", "Dataset104_Hippocampus", None)
    names = [corpus_name("single_domain", target) for target in targets]
    assert len(set(names)) == 3 and all(DATASET_WORDS.fullmatch(name) for name in names)
