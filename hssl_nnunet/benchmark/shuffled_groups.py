"""Groups without a meaning, for a control: each domain gets the groups of another one."""

from __future__ import annotations

import random
from collections.abc import Mapping
from itertools import combinations

from hssl_nnunet.corpus.hierarchy import Groups
from hssl_nnunet.errors import HSSLError

SEED = 0
DRAWS = 1000


def shuffled_groups(groups: Mapping[str, Groups]) -> dict[str, Groups]:
    """Permute the groups of the domains at random: as many groups of the same sizes, without a meaning.

    All that the loss sees of a group is who shares it. Of many permutations drawn it is therefore the one that leaves
    the fewest pairs of domains together. The same domains get the same groups in every call.

    Args:
        groups: domain -> its groups at all levels.

    Raises:
        HSSLError: no permutation changes who shares a group.
    """
    rng, before, values = random.Random(SEED), _together(groups), list(groups.values())
    drawn = (dict(zip(groups, rng.sample(values, len(values)), strict=True)) for _ in range(DRAWS))
    best = min(drawn, key=lambda candidate: len(_together(candidate) & before))
    if _together(best) == before:
        raise HSSLError(
            f"Shuffled groups: however those of {', '.join(groups)} are permuted, the same domains share one, and the "
            "loss sees no more than that: this arm is no control. Leave it out, or name more `--domains`."
        )
    return best


def _together(groups: Mapping[str, Groups]) -> set[tuple[int, str, str]]:
    """Level and names of each pair of domains that share a group there."""
    levels = range(len(next(iter(groups.values()))))
    return {(at, a, b) for a, b in combinations(groups, 2) for at in levels if groups[a][at] == groups[b][at]}
