"""How many images of each of several data sets a batch has, and which: decided by seed and epoch alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from compactmtl.config.sources import MixingConfig
from compactmtl.data.sampling import EpochSampler
from compactmtl.data.seeds import generator
from compactmtl.errors import ConfigError

_ROUNDING = 1e-9  # of a share that is a whole number of images


def shares(mixing: MixingConfig, names: Sequence[str], counts: Sequence[int], batch_size: int) -> list[float]:
    """Each source's share of the training images, as `data.mixing` says; their sum is 1.

    In joined batches none is less than one image a batch, and the others give in proportion.
    """
    if mixing.by == "shares":
        wanted = [mixing.shares[name] for name in names]
    else:
        wanted = [math.sqrt(count) if mixing.by == "sqrt" else float(count) for count in counts]
    total = sum(wanted)
    parts = [one / total for one in wanted]
    return _at_least(parts, 1 / batch_size) if mixing.batches == "joined" else parts


def steps(mixing: MixingConfig, names: Sequence[str], counts: Sequence[int], batch_size: int) -> int:
    """Batches of an epoch: those that `data.mixing.epoch` says, or with which the images are as many as there are."""
    if isinstance(mixing.epoch, int):
        return mixing.epoch
    if mixing.epoch is None:
        return -(-sum(counts) // batch_size)
    number = names.index(mixing.epoch)
    share = shares(mixing, names, counts, batch_size)[number]
    if mixing.batches == "alternating":
        return math.ceil(-(-counts[number] // batch_size) / share - _ROUNDING)
    return math.ceil(counts[number] / (share * batch_size) - _ROUNDING)


class MixedSampler(EpochSampler):
    """The training batches of several sources: shuffled in each, drawn in their shares.

    A source whose images are all drawn begins anew in another order, also in mid-epoch; what it has left over begins the
    next epoch. A sample that comes again in an epoch has its number plus that of all samples, once for each time: it is
    augmented anew.

    Raises ConfigError where an alternating epoch has no batch of a source.
    """

    def __init__(
        self, mixing: MixingConfig, names: Sequence[str], counts: Sequence[int], batch_size: int, seed: int
    ) -> None:
        super().__init__(sum(counts), batch_size, shuffle=True, seed=seed)
        self.names, self.counts, self.batches = tuple(names), tuple(counts), mixing.batches
        self.shares = shares(mixing, names, counts, batch_size)
        drawn = _alternating if mixing.batches == "alternating" else _joined
        self._drawn = drawn(self.shares, steps(mixing, names, counts, batch_size), batch_size)
        for name, some in zip(names, self._drawn.sum(0).tolist(), strict=True):
            if not some:
                raise ConfigError(
                    f"data.mixing: an epoch of {len(self)} batches has none of source {name}",
                    "raise its share (data.mixing.by, data.mixing.shares) or the steps of an epoch (data.mixing.epoch)",
                )

    def __len__(self) -> int:
        """Batches in a whole epoch, wherever the next pass starts."""
        return len(self._drawn)

    @property
    def images(self) -> list[int]:
        """Images of each source in an epoch."""
        return [int(some) for some in self._drawn.sum(0)]

    @property
    def least(self) -> int:
        """The samples of an epoch's smallest batch: all have as many."""
        return self._batch_size

    def _batches(self, epoch: int, start: int) -> Iterator[list[int]]:
        before = self._drawn[:start].sum(0).tolist()
        streams = [self._stream(number, epoch, skipped) for number, skipped in enumerate(before)]
        for drawn in self._drawn[start:].tolist():
            yield [next(stream) for stream, some in zip(streams, drawn, strict=True) for _ in range(some)]

    def _stream(self, number: int, epoch: int, skipped: int) -> Iterator[int]:
        """A source's samples in an epoch, after those that were `skipped`."""
        count, first = self.counts[number], sum(self.counts[:number])
        begin = (epoch - 1) * int(self._drawn[:, number].sum())  # epochs go on where the one before ended
        position = begin + skipped
        while True:
            turn, place = divmod(position, count)
            order = generator("order of a source", self._seed, number, turn).permutation(count)
            again = (turn - begin // count) * self._count
            for sample in order[place:].tolist():
                yield first + sample + again
                position += 1


def shares_of(sampler: EpochSampler) -> dict[str, float]:
    """Each data set's share of the training images, by its name; none of one alone."""
    return dict(zip(sampler.names, sampler.shares, strict=True)) if isinstance(sampler, MixedSampler) else {}


def mixing_notes(sampler: EpochSampler) -> tuple[str, ...]:
    """What training says of how it draws from several data sets; nothing of one alone."""
    if not isinstance(sampler, MixedSampler):
        return ()
    parts = [
        f"{name} {some:,} ({share:.1%}, each image {_times(some / count)})"
        for name, some, share, count in zip(
            sampler.names, sampler.images, sampler.shares, sampler.counts, strict=True
        )
    ]
    return (f"images of an epoch of {len(sampler)} {sampler.batches} batches: {', '.join(parts)}",)


class PartSampler(EpochSampler):
    """All samples in order, in batches of one source each."""

    def __init__(self, counts: Sequence[int], batch_size: int) -> None:
        super().__init__(sum(counts), batch_size, shuffle=False, seed=0)
        ends = np.cumsum(counts).tolist()
        self._bounds = [
            (begin, min(begin + batch_size, end))
            for count, end in zip(counts, ends, strict=True)
            for begin in range(end - count, end, batch_size)
        ]

    def __len__(self) -> int:
        """Batches of a pass."""
        return len(self._bounds)

    def _batches(self, epoch: int, start: int) -> Iterator[list[int]]:
        for begin, end in self._bounds[start:]:
            yield list(range(begin, end))


def _at_least(parts: Sequence[float], least: float) -> list[float]:
    """Shares none of which is below `least`, the others in proportion."""
    low: set[int] = set()
    while True:
        free = sum(part for number, part in enumerate(parts) if number not in low)
        left = 1 - least * len(low)
        raised = [least if n in low else part * left / free for n, part in enumerate(parts)]
        lower = {n for n, part in enumerate(raised) if n not in low and part < least}
        if not lower:
            return raised
        low |= lower


def _joined(parts: Sequence[float], count: int, batch_size: int) -> NDArray[np.int64]:
    """Images of each source in each batch (count, sources): whole numbers, whose sums follow the shares."""
    exact = np.array(parts) * batch_size
    whole = np.floor(exact + _ROUNDING).astype(np.int64)
    rest = batch_size - int(whole.sum())
    drawn = np.tile(whole, (count, 1))
    owed = np.zeros(len(parts))
    for batch in drawn if rest else ():
        owed += exact - whole
        more = np.argsort(-owed.round(6), kind="stable")[:rest]
        batch[more] += 1
        owed[more] -= 1
    return drawn


def _alternating(parts: Sequence[float], count: int, batch_size: int) -> NDArray[np.int64]:
    """Images of each source in each batch (count, sources): one source each, that which is owed the most."""
    drawn = np.zeros((count, len(parts)), np.int64)
    owed = np.zeros(len(parts))
    for batch in drawn:
        owed += parts
        chosen = int(np.argmax(owed.round(6)))
        batch[chosen] = batch_size
        owed[chosen] -= 1
    return drawn


def _times(often: float) -> str:
    """How often an image comes, in words."""
    words = f"{often:.2g}" if often < 100 else f"{often:,.0f}"
    return "once" if words == "1" else f"{words} times"
