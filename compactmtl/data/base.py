"""What a data set is: samples by index with their targets' specifications."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NotRequired, Protocol, TypedDict

from compactmtl.data.fit import Fit
from compactmtl.tasks.base import TargetSpec
from compactmtl.tasks.placement import Resize

if TYPE_CHECKING:  # whoever only reads a bundle loads no torch
    from torch import Tensor

    from compactmtl.config.inputs import InputConfig
    from compactmtl.config.recipe import DataConfig
    from compactmtl.tasks.instance_scoring import InstanceReference

Split = Literal["train", "holdout", "val", "test"]


class Sample(TypedDict):
    """One image, uint8 (C, H, W), and its targets without a batch dimension (see TargetSpec).

    Where the recipe names its inputs (`data.inputs`), a data set of the user's own gives all of them as `inputs`, in place
    of `image`: pictures uint8 (C, H, W), vectors float32 (n,).
    """

    image: Tensor  # the first picture where there are several inputs
    others: NotRequired[dict[str, Tensor]]  # by name the inputs beside it
    targets: dict[str, Tensor]
    references: NotRequired[
        dict[str, InstanceReference]
    ]  # of targets that are scored at the image's own size
    own_size: NotRequired[tuple[int, int]]  # of the upright image, where it does not fill the picture
    inside: NotRequired[Tensor]  # uint8 (H, W): 0 on the padding of a letterbox


class Batch(TypedDict):
    """A collated batch: image float32 (B, C, H, W), normalized; targets as in TargetSpec."""

    image: Tensor  # the first picture where there are several inputs
    inputs: NotRequired[tuple[Tensor, ...]]  # where the recipe names them, in their order; see `inputs.given`
    targets: dict[str, Tensor]
    references: NotRequired[dict[str, list[InstanceReference]]]  # by target, one an image; evaluation only
    sources: NotRequired[list[str]]  # the data set of each image, where there are several
    unread: NotRequired[
        list[dict[str, str]]
    ]  # for each place that another sample took: name -> what is wrong


def channel_fault(key: Literal["mean", "std"], values: Sequence[float]) -> str:
    """What is wrong with the values of each channel that a picture is normalized by; empty where nothing is."""
    shown = ", ".join(f"{one:g}" for one in values)
    if len(values) == 0:
        return f"{key} has no value: give one a channel"
    if not all(math.isfinite(one) for one in values):
        return f"{key} {shown}: a value is not finite"
    if key == "std" and min(values) <= 0:
        return f"{key} {shown}: pictures are divided by it, so that each value has to be above 0"
    return ""


@dataclass(frozen=True)
class Preprocessing:
    """How a uint8 image becomes the network's input: resize, divide by 255, subtract, divide.

    It has as many channels as `mean` has values. Raises ValueError for values by which no picture can be normalized.
    """

    size: tuple[int, int]
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    resize: Resize = "stretch"
    range: tuple[float, float] | None = None  # values of more than 8 bits that become 0 and 255

    def __post_init__(self) -> None:
        for fault in (channel_fault("mean", self.mean), channel_fault("std", self.std)):
            if fault:
                raise ValueError(fault)
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} values and std {len(self.std)}: give one a channel")
        if self.range is not None and not -math.inf < self.range[0] < self.range[1] < math.inf:
            raise ValueError(f"range {self.range}: give two numbers, the lower one first")

    @property
    def channels(self) -> int:
        """Of the image."""
        return len(self.mean)

    @property
    def fit(self) -> Fit:
        """How an image gets the network's size. Padding has the mean's value, so that it is about 0 to the network."""
        fill = (0,) * self.channels  # nothing is padded: stored samples must not seem to depend on the mean
        if self.resize == "letterbox":
            fill = tuple(min(max(int(255 * value + 0.5), 0), 255) for value in self.mean)
        return Fit(self.size, self.resize, self.channels, fill, self.range)


@dataclass(frozen=True)
class Vector:
    """How the numbers of a vector become the network's input: subtract, divide."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def channels(self) -> int:
        """How many numbers it has."""
        return len(self.mean)


Rule = Preprocessing | Vector


def rules(config: DataConfig) -> dict[str, Rule]:
    """How each of the network's inputs is made, by name and in their order; the one picture of others is `image`."""
    return {
        name: _preprocessing(config, one) if one.is_picture else Vector(one.mean, one.std)
        for name, one in config.given.items()
    }


def preprocessing(config: DataConfig) -> Preprocessing:
    """How an image becomes the network's input, for training and for deployment; of several inputs the first picture."""
    return _preprocessing(config, config.picture)


def _preprocessing(config: DataConfig, one: InputConfig) -> Preprocessing:
    return Preprocessing(config.size, one.mean, one.std, config.resize, one.range)


def image_fit(config: DataConfig, name: str | None = None) -> Fit:
    """How a recipe's images and maps get the network's size and channels; of several inputs the first picture's, or `name`'s."""
    return _preprocessing(config, config.picture if name is None else config.given[name]).fit


@dataclass(frozen=True)
class DataReport:
    """What `data check` found: counts by split, what is missing, and oddities with examples."""

    counts: dict[str, int]
    problems: list[str] = field(default_factory=list)  # fatal: training would fail
    notes: list[str] = field(default_factory=list)  # counted and passed over, such as names that don't parse
    known: dict[str, dict[str, int | None]] = field(
        default_factory=dict
    )  # by split and target, the samples that have a label; None where that was not counted
    endings: dict[str, int] = field(default_factory=dict)  # of the image files, most frequent first
    targets: dict[str, str] = field(
        default_factory=dict
    )  # each target's format and the distribution of its labels
    pseudo_labels: list[str] = field(default_factory=list)  # what teachers are to label, in words


class VisionDataset(Protocol):
    """Map-style data set of one split at a fixed size, before augmentation and normalization.

    It may have `labeled(target)`, which samples have a label (bool (N,), see `labels`), and `notes`, what of its files
    is passed over.
    """

    specs: Mapping[str, TargetSpec]
    split: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def identifier(self, index: int) -> str:
        """A name for the sample that a user can find, such as its file."""
