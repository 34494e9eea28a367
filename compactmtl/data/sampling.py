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
    from it at 1x1 resolution.
    """

    def __init__(self, count: int, batch_size: int, *, shuffle: bool, seed: int) -> None:
        self.epoch = 0
        self.start = 0
        self._count, self._batch_size, self._shuffle, self._seed = count, batch_size, shuffle, seed

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
        order = np.arange(self._count)
        if self._shuffle:
            order = generator("order", self._seed, self.epoch).permutation(self._count)
        epoch, start = self.epoch, self.start
        self.start = 0
        for batch in range(start, len(self)):
            yield epoch, order[batch * self._batch_size : (batch + 1) * self._batch_size].tolist()
