"""Batches of a data set: order, augmentation and normalization that depend on seed, epoch and index alone."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from compactmtl.config.recipe import DataConfig
from compactmtl.data.base import Batch, Sample, Vector, VisionDataset, rules
from compactmtl.data.images import normalize
from compactmtl.data.inputs import given, parts
from compactmtl.data.jitter import jitter
from compactmtl.data.seeds import generator
from compactmtl.data.transforms import augment, draw
from compactmtl.errors import CompactError, ConfigError

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


class BatchView(Dataset[Batch | CompactError]):
    """Whole batches of a data set by (epoch, indices).

    A damaged sample's error is handed back as a value: raised in a worker it would arrive wrapped in a traceback.
    """

    def __init__(self, dataset: VisionDataset, config: DataConfig, *, train: bool, seed: int) -> None:
        self._dataset, self._train, self._seed = dataset, train, seed
        self._augment, self._config = config.augment, config

    def __getitem__(self, keys: Keys) -> Batch | CompactError:
        try:
            batch = self._batch(*keys)
        except CompactError as error:
            return error
        if get_worker_info() is not None:
            _share(batch)
        return batch

    def _batch(self, epoch: int, indices: Sequence[int]) -> Batch:
        samples = [self._dataset[index] for index in indices]
        factors: Tensor | None = None
        if self._train and (self._augment.moves or self._augment.color):
            choices = [draw(self._augment, self._seed, epoch, index) for index in indices]
            if self._augment.moves:
                samples = [
                    augment(sample, self._dataset.specs, self._augment, choice)
                    for sample, choice in zip(samples, choices, strict=True)
                ]
            if self._augment.color:
                factors = torch.tensor([choice.color for choice in choices], dtype=torch.float32)
        inputs = normalized(samples, self._config, factors)
        batch: Batch = {
            "image": inputs[self._config.first],
            "targets": {
                name: torch.stack([sample["targets"][name] for sample in samples])
                for name in self._dataset.specs
            },
        }
        if self._config.inputs:
            batch["inputs"] = tuple(inputs.values())
        if not self._train and "references" in samples[0]:
            names = list(samples[0]["references"])
            batch["references"] = {name: [sample["references"][name] for sample in samples] for name in names}
        return batch


def normalized(
    samples: Sequence[Sample], config: DataConfig, factors: Tensor | None = None
) -> dict[str, Tensor]:
    """What the network is given of a batch of samples, by name; `factors` (B, 3) are random changes of color."""
    made: dict[str, Tensor] = {}
    for name, rule in rules(config).items():
        first = name == config.first
        values = torch.stack([one["image"] if first else one["others"][name] for one in samples])
        if isinstance(rule, Vector):
            made[name] = (values - torch.tensor(rule.mean)) / torch.tensor(rule.std)
            continue
        if factors is not None and (config.given[name].colored or not config.inputs):
            values = jitter(values.to(torch.float32), factors, _inside(samples))
        made[name] = normalize(values, rule)
    return made


def _inside(samples: Sequence[Sample]) -> Tensor | None:
    """Which pixels of a batch are no padding, uint8 (B, H, W); none where all are."""
    if not any("inside" in sample for sample in samples):
        return None
    whole = torch.ones(samples[0]["image"].shape[-2:], dtype=torch.uint8)
    return torch.stack([sample.get("inside", whole) for sample in samples])


class Loader(DataLoader[Any]):
    """A torch DataLoader of `Batch`; its `sampler` takes set_epoch and set_start before a pass."""

    sampler: EpochSampler

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # torch promises its own iterator class
        """One pass; raises DataError for a sample that cannot be read."""
        for batch in super().__iter__():
            if isinstance(batch, CompactError):
                raise batch
            yield batch


def build_loader(
    dataset: VisionDataset, config: DataConfig, *, train: bool, seed: int, pin: bool = False
) -> Loader:
    """Batches of `config.batch_size` with `config.workers` processes; the same values for any number of workers.

    With train=True the samples are shuffled and augmented anew in each epoch (see EpochSampler); with train=False
    they come in order, whole and unchanged. With `pin` they lie in page-locked memory, from which a GPU copies while the
    host goes on.

    Raises ConfigError where workers have to be started anew and the data set cannot be handed to them.
    """
    view = BatchView(dataset, config, train=train, seed=seed)
    if config.workers and _start_method() != "fork":
        _check_can_move(view, config)
    own = torch.Generator()  # so that a pass leaves torch's global random state alone
    own.manual_seed(seed)
    return Loader(
        view,
        batch_size=None,  # the view makes batches itself
        sampler=EpochSampler(len(dataset), config.batch_size, shuffle=train, seed=seed),
        num_workers=config.workers,
        collate_fn=_as_is,
        persistent_workers=config.workers > 0,
        pin_memory=pin,
        generator=own,
    )


def _share(batch: Batch) -> None:
    """Put a batch where the parent process reads it, here and not in the thread that sends it.

    There a full /dev/shm would be printed and the batch lost, and the parent would wait for it for ever.
    """
    for tensor in (*parts(given(batch)), *batch["targets"].values()):
        tensor.share_memory_()  # type: ignore[no-untyped-call]


def _start_method() -> str:
    """How this process would start a worker; asking must not settle it, as multiprocessing's own question does."""
    return multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]


def _check_can_move(view: BatchView, config: DataConfig) -> None:
    """Raise ConfigError for a data set of the user's that cannot be pickled; here, not in a worker's traceback."""
    try:
        ForkingPickler.dumps(view)
    except Exception as error:  # whatever an object of the user's says to being pickled
        raise ConfigError(
            f"data.workers: {config.name} cannot be handed to another process ({error})",
            "keep no open files and no functions made inside others in the data set, or set data.workers: 0",
        ) from error


def _as_is(batch: Any) -> Any:
    return batch
