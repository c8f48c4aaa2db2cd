"""Groups without a meaning, for a control: each domain gets the groups of another one."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Mapping
from itertools import combinations

from hssl_nnunet.corpus.hierarchy import Groups
from hssl_nnunet.errors import HSSLError

SEED = 0
DRAWS = 100
logger = logging.getLogger(__name__)


def shuffled_groups(groups: Mapping[str, Groups]) -> dict[str, Groups]:
    """Permute the groups of the domains at random: as many groups of the same sizes, without a meaning.

    As few domains as possible keep their groups: none, unless more than half of them have the same. Among such
    permutations, of 100 drawn, the one that leaves the fewest pairs of domains together in a group, for that is all
    that the loss sees of a group. The same domains get the same groups in every call.

    Args:
        groups: domain -> its groups at all levels.

    Raises:
        HSSLError: all domains have the same groups.
    """
    if len(set(groups.values())) == 1:
        raise HSSLError(
            f"Shuffled groups: every domain is in the groups {', '.join(next(iter(groups.values())))}, so that no "
            "permutation changes any. Leave this arm out, or name `--domains` of different groups."
        )
    rng, before = random.Random(SEED), _together(groups)
    best = min((_rotated(groups, rng) for _ in range(DRAWS)), key=lambda drawn: len(_together(drawn) & before))
    if _together(best) == before:
        logger.warning(
            "Shuffled groups: the same domains share groups as before, under other names, and the loss sees no more "
            "than who shares one. This arm is no control on these domains (%s).",
            ", ".join(groups),
        )
    return best


def _rotated(groups: Mapping[str, Groups], rng: random.Random) -> dict[str, Groups]:
    """Domains in a ring, those of equal groups side by side in a random order; each takes the groups k places on.

    k is the size of the largest set of equal groups. A step of k leaves every set, and wraps round into the same set
    only where this set is more than half of the ring: then for as many domains as must keep their groups.
    """
    ring = list(groups)
    rng.shuffle(ring)
    sets = list(dict.fromkeys(groups[name] for name in ring))
    ring.sort(key=lambda name: sets.index(groups[name]))
    k = max(Counter(groups.values()).values())
    taken = dict(zip(ring, ring[k:] + ring[:k], strict=True))
    return {name: groups[taken[name]] for name in groups}


def _together(groups: Mapping[str, Groups]) -> set[tuple[int, str, str]]:
    """Level and names of each pair of domains that share a group there."""
    levels = range(len(next(iter(groups.values()))))
    return {(at, a, b) for a, b in combinations(groups, 2) for at in levels if groups[a][at] == groups[b][at]}
