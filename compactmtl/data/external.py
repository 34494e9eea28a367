"""Data sets of the user's own: a class named as `package.module:Class` in a recipe's data.name.

The class takes (config: DataConfig, split: Split) and has what `VisionDataset` says: `specs`, len(), indexing that gives
a Sample at config.size, and `identifier`. It may name its splits (`splits`, by default train and val), its options
(`Options`, a subclass of Frozen), a `default_size`, and the values of data.resize that it heeds (`resizes`, by default
stretch), which it does with `image_fit(config)`; its samples then have an `own_size`. Where the recipe names its inputs,
a sample has them as `inputs`, in place of `image`. The holdout, the caches and the checks of every sample are done here.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from compactmtl.config import trust, validate_options
from compactmtl.config.recipe import DataConfig
from compactmtl.config.schema import Frozen, NoOptions
from compactmtl.data.base import Split, VisionDataset
from compactmtl.data.cache import Arrays, content_key, user_cache
from compactmtl.data.checked import checked, sides_of
from compactmtl.data.files import numbers_of, source_of
from compactmtl.data.labels import anything_known
from compactmtl.data.stored import StoredDataset
from compactmtl.errors import CompactError, ConfigError, DataError, machine_fault
from compactmtl.tasks.base import TargetSpec
from compactmtl.tasks.placement import Resize

_METHODS = ("__len__", "__getitem__", "identifier")
_SHOWN = 10
# Keys that decide when and where samples are made, and never what one holds.
_PLACE = {"augment", "batch_size", "cache", "on_error", "pseudo_labels", "select_on", "share", "workers"}


@dataclass(frozen=True)
class External:
    """A class of the user's as the data set modules are: the same names, the same meaning."""

    name: str
    dataset: type[Any]
    DESCRIPTION: str
    DEFAULT_SIZE: tuple[int, int]
    DEFAULT_ROOT: str | None
    SPLITS: tuple[Split, ...]
    Options: type[BaseModel]
    resizes: tuple[str, ...] = ("stretch",)

    def load(self, config: DataConfig, split: Split) -> VisionDataset:
        """One split: checked, with a holdout and caches. Raises DataError for a sample that its `specs` do not fit."""
        return _Wrapped(self, config, split)

    def problems(self, config: DataConfig) -> tuple[list[str], list[str]]:
        """Every sample is made once: (problems, notes)."""
        validate_options(self.Options, config.options, "data.options")
        bad: list[str] = []
        for split in self.SPLITS:
            try:
                dataset = _Wrapped(self, config, split)
            except DataError as error:
                if split != "test":  # nothing in training needs it
                    bad.append(error.message)
                continue
            faults = dataset.faults()
            more = [f"... and {len(faults) - _SHOWN} more in {split}"] if len(faults) > _SHOWN else []
            bad += faults[:_SHOWN] + more
        return bad, []


def is_external(name: str) -> bool:
    """Whether a data.name means a class of the user's own."""
    return ":" in name


def external(name: str) -> External:
    """The data set class that `package.module:Class` names.

    Raises UntrustedError without the user's word (see compactmtl.config.trust), ConfigError where the module cannot be
    imported or what it names is not a data set class.
    """
    named = trust.import_class(name, "data.name", trust.those(_fits), "data set classes")
    if not _fits(named):
        lacking = [method for method in _METHODS if not callable(getattr(named, method, None))]
        what = f"lacks {', '.join(lacking)}" if inspect.isclass(named) else "is not a class"
        raise ConfigError(
            f"data.name: {name} {what}", "see docs/how-to/own-data.md for what a data set class has"
        )
    return _described(name, named)


def _described(name: str, dataset: type[Any]) -> External:
    splits = _names(name, dataset, "splits", ("train", "val"), ("train", "val", "test"))
    if not {"train", "val"} <= set(splits):
        raise ConfigError(
            f"data.name: {name}.splits is {splits}", "name train and val, and test where there is one"
        )
    resizes = _names(name, dataset, "resizes", ("stretch",), get_args(Resize))
    options = getattr(dataset, "Options", NoOptions)
    if not (inspect.isclass(options) and issubclass(options, Frozen)):
        raise ConfigError(
            f"data.name: {name}.Options does not refuse unknown keys",
            "derive it from compactmtl.config.recipe.Frozen, a pydantic model",
        )
    text = (inspect.getdoc(dataset) or "").strip().partition("\n")[0]
    size = getattr(dataset, "default_size", (128, 128))
    if (found := sides_of(size)) is None:
        raise ConfigError(f"data.name: {name}.default_size is {size!r}", "give height and width in pixels")
    root = getattr(dataset, "default_root", None)
    if not isinstance(root, str | Path | None):
        raise ConfigError(f"data.name: {name}.default_root is {root!r}", "give the path of a folder, or None")
    return External(
        name,
        dataset,
        text or f"the class {name}",
        found,
        None if root is None else str(root),
        splits,
        options,
        resizes,
    )


def _names(
    name: str, dataset: type[Any], attribute: str, default: tuple[str, ...], known: Sequence[str]
) -> tuple[Any, ...]:
    """A list of names that a class may have. Raises ConfigError for another value, and for a name that is not `known`."""
    given = getattr(dataset, attribute, default)
    if not isinstance(given, list | tuple | set | frozenset) or not all(one in known for one in given):
        raise ConfigError(
            f"data.name: {name}.{attribute} is {given!r}", f"give a tuple of names of {', '.join(known)}"
        )
    return tuple(one for one in known if one in given)


class _Wrapped(StoredDataset):
    """The user's data set with its samples checked, a part of it held out, and its arrays cached."""

    def __init__(self, source: External, config: DataConfig, split: Split) -> None:
        validate_options(source.Options, config.options, "data.options")
        if config.resize not in source.resizes:
            raise ConfigError(
                f"data.resize: {source.name} does not say that it can {config.resize}, only {', '.join(source.resizes)}",
                "name what it can in its attribute `resizes`, and read images with compactmtl.data.image_fit(config)",
            )
        self._name, self._config = source.name, config
        self._inner = _made(source, config, source_of(split))
        specs = _specs(source.name, self._inner)
        self._names = _identifiers(source.name, self._inner)
        self._numbers = numbers_of(self._names, config.holdout, split)
        if not self._numbers:
            raise DataError(f"{source.name}: split {split} holds no sample", "check data.root")

        def cached() -> Path:
            said = config.model_dump(mode="json", exclude=_PLACE)
            key = content_key(_code(source.dataset), self._facts(), said, split)
            return user_cache() / "external" / key

        super().__init__(config, split, specs, len(self._numbers), cached)

    def labeled(self, target: str) -> NDArray[np.bool_] | None:
        """Which samples have a label of a target: bool (N,); None where that would need every sample made."""
        column = self._store.column(target)
        return None if column is None else anything_known(self.specs[target], column)

    def identifier(self, index: int) -> str:
        """As the user's class says."""
        return self._names[self._numbers[index]]

    def faults(self) -> list[str]:
        """What is wrong with samples that cannot be used."""
        messages: list[str] = []
        for index in range(len(self)):
            try:
                self._make(index)
            except DataError as error:
                messages.append(error.message)
        return messages

    def _make(self, index: int) -> Arrays:
        number = self._numbers[index]
        with _own_faults(
            f"{self._name}: sample {self._names[number]} fails", "mend the class, or take the sample out"
        ):
            sample = self._inner[number]
        where = f"{self._name}: sample {self._names[number]}"
        return checked(sample, self.specs, self._config, where)

    def _facts(self) -> list[tuple[str, int, int]]:
        """Names, with size and time of those that are files, so that a cache does not outlive a change."""
        facts = []
        for number in self._numbers:
            path = Path(self._names[number])
            status = path.stat() if path.is_file() else None
            facts.append((str(path), status.st_size if status else 0, status.st_mtime_ns if status else 0))
        return facts


@contextmanager
def _own_faults(what: str, mend: str) -> Iterator[None]:
    """Report what the user's class raises as a fault of the data."""
    try:
        yield
    except CompactError:
        raise
    except Exception as error:  # the user's own code
        if machine_fault(error) is not None:
            raise
        raise DataError(f"{what}: {trust.raised_at(error)}{type(error).__name__}: {error}", mend) from error


def _made(source: External, config: DataConfig, split: Split) -> Any:
    with _own_faults(
        f"{source.name}: making split {split} fails",
        "the class takes (config, split); see docs/how-to/own-data.md",
    ):
        return source.dataset(config, split)


def _identifiers(name: str, dataset: Any) -> list[str]:
    """What the samples are called. Raises DataError where they cannot be counted or named."""
    with _own_faults(f"{name}: len() fails", "let __len__ return the number of samples"):
        count = len(dataset)
    names = []
    for index in range(count):
        with _own_faults(f"{name}: identifier({index}) fails", "let it return what the sample is called"):
            names.append(str(dataset.identifier(index)))
    return names


def _specs(name: str, dataset: Any) -> Mapping[str, TargetSpec]:
    specs = getattr(dataset, "specs", None)
    if (
        not isinstance(specs, Mapping)
        or not specs
        or not all(isinstance(spec, TargetSpec) for spec in specs.values())
    ):
        raise ConfigError(
            f"data.name: {name} has no `specs`", "set self.specs = {target: TargetSpec(...)} in __init__"
        )
    for target, spec in specs.items():
        _check_spec(f"data.name: {name}, target {target}", spec)
    return specs


def _check_spec(where: str, spec: TargetSpec) -> None:
    if spec.kind == "mask":
        if spec.ignore_index is not None and not 0 <= spec.ignore_index <= 255:
            raise ConfigError(
                f"{where}: ignore_index {spec.ignore_index} cannot be stored in a mask",
                "masks are kept as bytes: take one of 0 to 255, such as 255",
            )
        if len(spec.classes) > 256:
            raise ConfigError(f"{where}: {len(spec.classes)} classes", "a mask holds 256 at most")
    if unknown := {label for pair in spec.mirrored for label in pair} - set(spec.classes):
        raise ConfigError(
            f"{where}: mirrored names {min(unknown)!r}, which is none of the classes",
            "name two classes a pair",
        )


def _fits(value: Any) -> bool:
    return inspect.isclass(value) and all(callable(getattr(value, method, None)) for method in _METHODS)


def _code(cls: type[Any]) -> str:
    """The source of the class's file, so that a cache on disk does not outlive a change of it."""
    try:
        return Path(inspect.getfile(cls)).read_text(encoding="utf-8")
    except (OSError, TypeError):
        return cls.__qualname__
