"""The order in which an epoch's samples come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from compactmtl.data.seeds import generator

Keys = tuple[int, Sequence[int]]  # epoch, and the samples of one batch


class EpochSampler(Sampler[Keys]):
    """The batches of an epoch: shuffled by (seed, epoch) in training, in order otherwise.

    In training a last batch of a single sample is left out (unless it is the only one): batch norm cannot learn
    from it at 1x1 resolution. Of several processes each has its own samples, see `split`.
    """

    def __init__(self, count: int, batch_size: int, *, shuffle: bool, seed: int) -> None:
        self.epoch = 0
        self.start = 0
        self._count, self._batch_size, self._shuffle, self._seed = count, batch_size, shuffle, seed
        self._part, self._parts = 0, 1

    def split(self, number: int, of: int) -> None:
        """Give the share `number` of `of` from now on: in training of each batch, in its order; otherwise whole batches in turn.

        So each sample is in one share. Numbers of batches stay those of all shares together.
        """
        self._part, self._parts = number, of

    @property
    def least(self) -> int:
        """The samples of an epoch's smallest batch, all shares together."""
        rest = self._count - (len(self) - 1) * self._batch_size
        return min(rest, self._batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass, from its first batch."""
        self.epoch, self.start = epoch, 0

    def set_start(self, batch_index: int) -> None:
        """Begin the next pass at this batch of the epoch, as if those before it had passed; once."""
        self.start = batch_index

    def __len__(self) -> int:
        """Batches in a whole epoch, wherever the next pass starts."""
        full, rest = divmod(self._count, self._batch_size)
        single = rest == 1 and full > 0 and self._shuffle
        return full + (rest > 0) - single

    def __iter__(self) -> Iterator[Keys]:
        epoch, start = self.epoch, self.start
        self.start = 0
        for number, samples in enumerate(self._batches(epoch, start), start):
            if self._shuffle:
                first, last = (len(samples) * part // self._parts for part in (self._part, self._part + 1))
                yield epoch, samples[first:last]
            elif number % self._parts == self._part:
                yield epoch, samples

    def _batches(self, epoch: int, start: int) -> Iterator[list[int]]:
        """The samples of all shares, batch by batch from number `start` on."""
        order = np.arange(self._count)
        if self._shuffle:
            order = generator("order", self._seed, epoch).permutation(self._count)
        for batch in range(start, len(self)):
            yield order[batch * self._batch_size : (batch + 1) * self._batch_size].tolist()
