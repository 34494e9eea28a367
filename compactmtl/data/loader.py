"""Batches of a data set: order, augmentation and normalization that depend on seed, epoch and index alone."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Iterator, Sequence
from multiprocessing import connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from compactmtl.config.recipe import DataConfig
from compactmtl.data.base import Batch, Sample, Vector, VisionDataset, rules
from compactmtl.data.images import normalize
from compactmtl.data.inputs import given, parts
from compactmtl.data.jitter import jitter
from compactmtl.data.mixing import MixedSampler, PartSampler
from compactmtl.data.sampling import EpochSampler as EpochSampler
from compactmtl.data.sampling import Keys
from compactmtl.data.sources import SourcesDataset
from compactmtl.data.transforms import augment, draw
from compactmtl.data.unreadable import read_sample
from compactmtl.errors import CompactError, CompactWarning, ConfigError

SECONDS_TO_DIE = 5.0  # between a broken connection and the end of the process behind it


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

    def _batch(self, epoch: int, indices: Sequence[int], numbers: Sequence[int] | None = None) -> Batch:
        """`numbers` are what augmentation knows the samples by, where that is not their indices."""
        found = [read_sample(self._dataset, self._config, index) for index in indices]
        samples, unread = [sample for sample, _ in found], [failed for _, failed in found if failed]
        factors: Tensor | None = None
        if self._train and (self._augment.moves or self._augment.color):
            choices = [draw(self._augment, self._seed, epoch, number) for number in numbers or indices]
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
        if unread:
            batch["unread"] = unread
        if not self._train and "references" in samples[0]:
            names = list(samples[0]["references"])
            batch["references"] = {name: [sample["references"][name] for sample in samples] for name in names}
        return batch


class SourcesView(BatchView):
    """Whole batches of several data sets: each one's images with its own augmentation and normalization."""

    def __init__(self, dataset: SourcesDataset, config: DataConfig, *, train: bool, seed: int) -> None:
        super().__init__(dataset, config, train=train, seed=seed)
        self._dataset: SourcesDataset = dataset
        self._views = [BatchView(part, part.config, train=train, seed=seed) for part in dataset.parts]

    def _batch(self, epoch: int, indices: Sequence[int], numbers: Sequence[int] | None = None) -> Batch:
        by_part: dict[int, tuple[list[int], list[int]]] = {}
        for index in indices:
            part, inner = self._dataset.place(
                index % len(self._dataset)
            )  # it may come again: see MixedSampler
            inners, known_by = by_part.setdefault(part, ([], []))
            inners.append(inner)
            known_by.append(index)
        batches = [self._views[part]._batch(epoch, *by_part[part]) for part in sorted(by_part)]
        sources = [self._dataset.parts[part].name for part in sorted(by_part) for _ in by_part[part][0]]
        if len(batches) == 1:
            return {**batches[0], "sources": sources}
        joined: Batch = {
            "image": torch.cat([batch["image"] for batch in batches]),
            "targets": {
                name: torch.cat([batch["targets"][name] for batch in batches]) for name in self._dataset.specs
            },
            "sources": sources,
        }
        if unread := [failed for batch in batches for failed in batch.get("unread", [])]:
            joined["unread"] = unread
        return joined


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
    labeled_apart: frozenset[str] = frozenset()  # targets that several data sets have, measured on each
    tells: bool = True  # of samples that others stand in for; training counts them instead

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # torch promises its own iterator class
        """One pass; raises DataError for a sample that cannot be read, and torch's RuntimeError where a worker died."""
        batches = super().__iter__()
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (OSError, EOFError) as error:
                _raise_where_a_worker_died(batches, error)
                raise
            if isinstance(batch, CompactError):
                raise batch
            for failed in batch.get("unread", []) if self.tells else []:
                for name, what in failed.items():
                    warnings.warn(f"{name} is passed over: {what}", CompactWarning, stacklevel=2)
            yield batch


def _raise_where_a_worker_died(batches: object, error: Exception) -> None:
    """Raise what torch says of a worker that died, where this is why reading from one failed.

    A process that is killed closes its connections before the signal arrives that tells torch of its death.
    """
    workers = getattr(batches, "_workers", [])
    if not workers or "in DataLoader worker process" in str(error):  # a data set's own; the worker lives on
        return
    try:
        ended = connection.wait([worker.sentinel for worker in workers], timeout=SECONDS_TO_DIE)
        for worker in workers:
            if worker.sentinel in ended:
                worker.join(SECONDS_TO_DIE)  # or the signal arrives later, wherever we are then
    except RuntimeError as told:  # by the signal
        raise told from error
    if dead := ", ".join(str(worker.pid) for worker in workers if not worker.is_alive()):
        raise RuntimeError(f"DataLoader worker (pid(s) {dead}) exited unexpectedly") from error


def build_loader(
    dataset: VisionDataset, config: DataConfig, *, train: bool, seed: int, pin: bool = False
) -> Loader:
    """Batches of `config.batch_size` with `config.workers` processes; the same values for any number of workers.

    With train=True the samples are shuffled and augmented anew in each epoch (see EpochSampler); with train=False
    they come in order, whole and unchanged. With `pin` they lie in page-locked memory, from which a GPU copies while the
    host goes on.

    Raises ConfigError where workers have to be started anew and the data set cannot be handed to them.
    """
    view, sampler = _view(dataset, config, train=train, seed=seed)
    if config.workers and _start_method() != "fork":
        _check_can_move(view, config)
    own = torch.Generator()  # so that a pass leaves torch's global random state alone
    own.manual_seed(seed)
    loader = Loader(
        view,
        batch_size=None,  # the view makes batches itself
        sampler=sampler,
        num_workers=config.workers,
        collate_fn=_as_is,
        persistent_workers=config.workers > 0,
        pin_memory=pin,
        generator=own,
    )
    loader.tells = not train
    if isinstance(dataset, SourcesDataset):
        owned = [target for part in dataset.parts for target in part.own_targets]
        loader.labeled_apart = frozenset(target for target in owned if owned.count(target) > 1)
    return loader


def _view(
    dataset: VisionDataset, config: DataConfig, *, train: bool, seed: int
) -> tuple[BatchView, EpochSampler]:
    if not isinstance(dataset, SourcesDataset):
        view = BatchView(dataset, config, train=train, seed=seed)
        return view, EpochSampler(len(dataset), config.batch_size, shuffle=train, seed=seed)
    counts = [len(part) for part in dataset.parts]
    names = [part.name for part in dataset.parts]
    sampler = (
        MixedSampler(config.mixing, names, counts, config.batch_size, seed)
        if train
        else PartSampler(counts, config.batch_size)
    )
    return SourcesView(dataset, config, train=train, seed=seed), sampler


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
