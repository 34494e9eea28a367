"""Several processes: in training each has its share of every batch, in validation whole batches in turn; none twice."""

from __future__ import annotations

from itertools import chain

import pytest

from compactmtl.config.sources import MixingConfig
from compactmtl.data.mixing import MixedSampler, PartSampler
from compactmtl.data.sampling import EpochSampler


def samplers(count: int) -> list[EpochSampler]:
    mixing = MixingConfig.model_validate({"by": "size"})
    return [
        EpochSampler(count, 8, shuffle=True, seed=3),
        MixedSampler(mixing, ["a", "b"], [count, 2 * count], 8, 3),
    ]


def batches(sampler: EpochSampler, start: int = 0) -> list[list[int]]:
    sampler.set_epoch(2)
    sampler.set_start(start)
    return [list(samples) for _, samples in sampler]


@pytest.mark.parametrize("of", [2, 3])
@pytest.mark.parametrize("number", [0, 1])
def test_shares_of_a_batch_are_the_batch(of: int, number: int) -> None:
    whole = batches(samplers(29)[number], start=1)
    shares = []
    for part in range(of):
        sampler = samplers(29)[number]
        steps = len(sampler)
        sampler.split(part, of)
        assert len(sampler) == steps
        shares.append(batches(sampler, start=1))
    assert [list(chain(*of_batch)) for of_batch in zip(*shares, strict=True)] == whole
    sizes = {len(share) for of_batch in zip(*shares, strict=True) for share in of_batch}
    assert max(sizes) <= -(-8 // of) and min(sizes) >= 1


@pytest.mark.parametrize(
    "make", [lambda: EpochSampler(21, 4, shuffle=False, seed=0), lambda: PartSampler([9, 12], 4)]
)
def test_each_image_is_validated_once(make: type[EpochSampler]) -> None:
    whole = batches(make())  # type: ignore[call-arg]
    shares = []
    for part in range(4):
        sampler = make()  # type: ignore[call-arg]
        sampler.split(part, 4)
        shares.append(batches(sampler))
    assert [shares[number % 4][number // 4] for number in range(len(whole))] == whole
    assert sum(map(len, shares)) == len(whole)


@pytest.mark.parametrize(("count", "least"), [(29, 5), (32, 8), (33, 8), (3, 3), (1, 1)])
def test_the_smallest_batch(count: int, least: int) -> None:
    sampler = EpochSampler(count, 8, shuffle=True, seed=0)
    assert sampler.least == least == min(map(len, batches(sampler)))
