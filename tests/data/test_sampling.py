from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare

from hssl_nnunet.data.sampling import DomainSampler, rank_part
from hssl_nnunet.errors import HSSLError

SIZES = {0: 400, 2: 100, 5: 25}  # domains 1, 3 and 4 have no image
DOMAINS = [d for d, n in SIZES.items() for _ in range(n)]


def sampler(alpha: float = 0.5, chunks: int = 8, images: int = 4, domains: list[int] = DOMAINS) -> DomainSampler:
    return DomainSampler(domains, alpha=alpha, chunks_per_step=chunks, images_per_chunk=images, seed=3)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_domains_are_drawn_with_probability_n_to_the_alpha(alpha):
    drawn = Counter(chunk.domain for step in range(1000) for chunk in sampler(alpha).step(step))
    weights = np.array([n**alpha for n in SIZES.values()])
    assert set(drawn) == set(SIZES)
    assert chisquare([drawn[d] for d in SIZES], weights / weights.sum() * 8000).pvalue > 1e-3


def test_images_of_a_domain_are_drawn_alike_in_every_place_of_a_chunk():
    places = [Counter() for _ in range(4)]
    for step in range(1500):
        for chunk in sampler().step(step):
            if chunk.domain == 5:
                for place, row in enumerate(chunk.rows):
                    places[place][row] += 1
    for counts in places:
        assert chisquare([counts[row] for row in range(500, 525)]).pvalue > 1e-3


def test_chunks_hold_one_domain_and_no_image_comes_twice():
    for step in range(300):
        chunks = sampler(chunks=6).step(step)  # at most 24 images of the 25 of the smallest domain
        rows = list(itertools.chain(*(chunk.rows for chunk in chunks)))
        assert all(DOMAINS[row] == chunk.domain for chunk in chunks for row in chunk.rows)
        assert len(rows) == len(set(rows)) == 24


def test_images_repeat_evenly_where_a_domain_has_too_few():
    chunks = sampler(chunks=5, images=4, domains=[0] * 7).step(0)
    counts = Counter(row for chunk in chunks for row in chunk.rows)
    assert sorted(counts.values()) == [2, 3, 3, 3, 3, 3, 3]


def test_a_step_depends_on_its_index_alone():
    first, second = sampler(), sampler()
    for step in range(5):
        first.step(step)
    assert first.step(5) == second.step(5)
    assert second.step(5) != second.step(6)


def test_seeds_of_chunks_differ():
    seeds = [chunk.seed for step in range(200) for chunk in sampler().step(step)]
    assert len(set(seeds)) == len(seeds)


def test_ranks_share_out_the_chunks_of_one_process():
    chunks = sampler().step(1)
    parts = [rank_part(chunks, rank, 4) for rank in range(4)]
    assert [len(part) for part in parts] == [2, 2, 2, 2]
    assert [parts[i % 4][i // 4] for i in range(8)] == chunks


def test_chunks_that_cannot_be_shared_out_are_refused():
    with pytest.raises(HSSLError, match="8 chunks.*3 processes.*chunks_per_step"):
        rank_part(sampler().step(0), 0, 3)


def test_no_image_is_refused():
    with pytest.raises(HSSLError, match="hssl corpus"):
        sampler(domains=[])
