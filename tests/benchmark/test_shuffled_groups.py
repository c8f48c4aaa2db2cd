"""The control arm's groups: a permutation that truly moves them, the same in every call."""

from __future__ import annotations

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


def together(groups: Groups) -> set[tuple[int, str, str]]:
    pairs = combinations(groups, 2)
    return {(at, a, b) for a, b in pairs for at, (x, y) in enumerate(zip(groups[a], groups[b], strict=True)) if x == y}


def test_as_few_domains_as_can_be_share_a_group_that_they_shared_before() -> None:
    for count in range(2, 7):
        for letters in product("ABC", repeat=count):
            before = named(*((letter, "MR" if letter == "A" else "CT") for letter in letters))
            possible = [together(dict(zip(before, p, strict=True))) for p in set(permutations(before.values()))]
            if all(other == together(before) for other in possible):
                with pytest.raises(HSSLError, match="no control"):
                    shuffled_groups(before)
                continue
            after = shuffled_groups(before)
            assert list(after) == list(before) and Counter(after.values()) == Counter(before.values())
            assert len(together(after) & together(before)) == min(len(p & together(before)) for p in possible), letters
            assert shuffled_groups(before) == after


def test_two_domains_have_no_control_for_their_groups_change_names_alone() -> None:
    for groups in ([("brain", "MR"), ("liver", "CT")], [("brain", "MR")] * 5):
        with pytest.raises(HSSLError, match="the same domains share one"):
            shuffled_groups(named(*groups))


def test_the_decathlons_domains_are_parted() -> None:
    decathlon = ["brain", "heart", "liver", "brain", "pelvis", "chest", "liver", "liver", "liver", "liver"]
    before = named(*((organ, "CT" if organ in ("liver", "chest") else "MR") for organ in decathlon))
    finest = {pair for pair in together(before) if pair[0] == 0}
    assert len(finest) == 11 and len(finest & together(shuffled_groups(before))) < 5


def test_targets_of_one_name_have_corpora_of_their_own() -> None:
    targets = ("Dataset004_Hippocampus", "Dataset104_Hippocampus", None)
    names = [corpus_name("single_domain", target) for target in targets]
    assert len(set(names)) == 3 and all(DATASET_WORDS.fullmatch(name) for name in names)
