"""What a task is: one class holds all that the toolkit knows of a kind of output.

A kind is a file of `compactmtl.tasks.kinds` with one subclass of `MapTask` or `ValueTask`, or such a class of the user's
own, named as `package.module:Class`. Its file is also imported to read a deployed model, which loads no torch: whatever
needs torch is imported inside the methods that get tensors.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, runtime_checkable

from numpy.typing import NDArray

from compactmtl.artifacts.layout import BUNDLE_FILE
from compactmtl.config.recipe import TaskConfig
from compactmtl.config.schema import Frozen, NoOptions
from compactmtl.config.validate import validate_options
from compactmtl.errors import ArtifactError, ConfigError
from compactmtl.tasks import pictures
from compactmtl.tasks.common import nearest
from compactmtl.tasks.decoding import Decoding, Values

if TYPE_CHECKING:
    from torch import Tensor, nn

Array = NDArray[Any]
Color = tuple[int, ...]
Legend = tuple[
    tuple[Color | None, str], ...
]  # lines below a picture, each with a color of the picture or none

TargetKind = Literal["mask", "depth", "normals", "disparity", "class", "multilabel", "scalar", "instances"]


@dataclass(frozen=True)
class TargetSpec:
    """What a data set says of one of its targets.

    Formats of a batched target by kind:
      mask     int64 (B, H, W), class index; `ignore_index` marks pixels that count nowhere
      depth    float32 (B, 1, H, W) in `unit`; 0 where unknown
      normals  float32 (B, 3, H, W), unit vectors in the camera frame (x right, y down, z forward); 0 (or not
               finite) where unknown
      class    int64 (B,), class index; `ignore_index` marks images whose class is unknown
      scalar   float32 (B,) in `unit`; not a number where unknown
      disparity  float32 (B, 1, H, W), proportional to inverse depth; 0 where unknown
      multilabel float32 (B, len(classes)), 1 present, 0 absent, -1 unknown
      instances  int64 (B, 2, H, W): instance number from 1 (0 none, -1 a crowd to ignore) and class index;
               both are -1 where nothing is known
    """

    kind: TargetKind
    classes: tuple[str, ...] = ()
    unit: str = ""
    ignore_index: int | None = None
    mean: float = 0.0  # of a scalar (or a depth) over the training split, for a head that starts at the mean
    std: float = 1.0
    # of a mask: pairs of classes that change places in a mirror image, such as a left and a right eye
    mirrored: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        # A run's folder keeps it as JSON, which knows lists alone.
        object.__setattr__(self, "mirrored", tuple((one, other) for one, other in self.mirrored))

    @property
    def unknown(self) -> float | None:
        """What an element of the target holds where nothing is known; none: of a mask or a class all is known."""
        if self.kind in ("mask", "class"):
            return self.ignore_index
        return {"scalar": math.nan, "multilabel": -1, "instances": -1}.get(self.kind, 0)


@dataclass(frozen=True)
class MetricInfo:
    """How to read one metric: which way is better, and in which unit."""

    higher_is_better: bool
    unit: str = ""
    share: bool = False  # lies in [0, 1] and is shown as a percentage
    gain: bool = True  # counts in Δm, as in the papers' tables


class Metrics(Protocol):
    """Accumulates over a whole split; exact, never a mean of batch means."""

    def update(self, output: Tensor, target: Tensor) -> None: ...

    def compute(self) -> dict[str, float]: ...


@runtime_checkable
class SummedMetrics(Metrics, Protocol):
    """Metrics of sums over a split: what several processes counted on a part of it each adds up."""

    def sums(self) -> Sequence[Tensor]:
        """The live counts and sums, int64 or float64 on the CPU: what is added to them `compute` reads."""


@runtime_checkable
class ListedMetrics(Metrics, Protocol):
    """Metrics that keep what they met, update by update: what several processes met on a part of a split each is joined."""

    def listed(self) -> list[Any]:
        """What each `update` left, in their order; values that JSON can hold."""

    def take(self, listed: Sequence[Any]) -> None:
        """Put what `listed` gave, of any number of updates, in the place of what is there."""


class ReferenceMetrics(Metrics, Protocol):
    """Metrics of a task with `scores_references`."""

    def update(self, output: Tensor, target: Tensor, references: Sequence[Any] | None = None) -> None:
        """`references`: what the data set gives for scoring beside the target, one an image."""


@dataclass(frozen=True)
class Task(ABC):
    """One output of the network. Built by `build_task(name, config, spec)`.

    A kind derives from `MapTask`, whose output is a map (B, channels, H, W) at the input's size, or from `ValueTask`,
    whose output is one vector an image (B, channels).
    """

    name: str
    kind: str  # as the recipe names it
    target: str  # name of the target in the data set; the task's own name unless the recipe says otherwise
    spec: TargetSpec
    weight: float
    loss_name: str
    options: Any

    # What a kind declares.
    target_kind: ClassVar[TargetKind]
    losses: ClassVar[tuple[str, ...]]  # the default first
    primary: ClassVar[str]  # the metric that a one-line summary shows
    dense: ClassVar[bool]  # whether the output is a map

    # What a kind declares where the default does not fit it.
    # For those who deploy the model: what a number of its output is, in words and by kind, and what axis 1 counts.
    meaning: ClassVar[str] = "raw output of the head"
    values: ClassVar[Values] = "raw"
    axis: ClassVar[str] = "channel"
    Options: ClassVar[type[Frozen]] = NoOptions
    option_losses: ClassVar[Mapping[str, Sequence[str]]] = {}  # an option that only these losses use
    least_classes: ClassVar[int] = 0  # that the target must name
    usual: ClassVar[bool] = True  # of the kinds that learn one format, the one that `data check` draws it as
    stride: ClassVar[int] = 1  # pixels a side of a map's cell; `decode` gives the input's size
    own_head: ClassVar[str | None] = None  # a kind of head that belongs to this kind of task alone
    default_head: ClassVar[str]  # the kind of head where the recipe names none
    # Behind the output in an exported model, on request: names of `tasks.postprocess`.
    postprocess: ClassVar[tuple[str, ...]] = ()
    # What a student is compared with a teacher in: class probabilities over the channels, a probability for each
    # channel, or predictions in the target's own format by the task's own loss; none: it cannot be distilled.
    distillation: ClassVar[Literal["softmax", "sigmoid", "prediction"] | None] = "prediction"
    # How two mixed images are scored: the loss against each target, in their shares, or the loss against the mean of the
    # targets; none: a mixed image has no target.
    mixup: ClassVar[Literal["loss", "target"] | None] = None
    # What tells how sure a teacher is of what `decode` gives, where that is to be a label (`data.pseudo_labels`): its
    # probability (`certainty`), or how far it is from the answer for the mirror image (`disagreement`); none: the kind's
    # output is no label.
    sureness: ClassVar[Literal["probability", "mirror"] | None] = None
    # Of the loss in uncertainty weighting: 1/2 where the loss is of a Gaussian likelihood, of a real quantity.
    uncertainty_scale: ClassVar[float] = 1.0
    scores_references: ClassVar[bool] = (
        False  # whether metrics().update takes a data set's references as well
    )

    @classmethod
    def build(cls, name: str, config: TaskConfig, spec: TargetSpec) -> Self:
        """The task of a recipe's section. Raises ConfigError where target, loss or options do not fit."""
        target = config.target or name
        _check_spec(name, config.kind, target, spec, cls)
        options = validate_options(cls.Options, config.options, f"tasks.{name}.options")
        loss = cls._chosen_loss(name, config)
        task = cls(name, config.kind, target, spec, config.weight, loss, options)
        if cls.primary not in task.metric_info:
            raise ConfigError(
                f"tasks.{name}: of kind {config.kind} the primary {cls.primary!r} is none of its metrics",
                f"name one of {', '.join(task.metric_info)}",
            )
        task.check()
        return task

    @classmethod
    def _chosen_loss(cls, name: str, config: TaskConfig) -> str:
        """The configured loss, by default the first. Raises ConfigError for an unknown one and for options it has not."""
        loss = cls.losses[0] if config.loss is None else config.loss
        if loss not in cls.losses:
            raise ConfigError(
                f"tasks.{name}.loss: {config.kind} has no loss {config.loss!r}", nearest(loss, cls.losses)
            )
        for option, losses in cls.option_losses.items():
            if option in config.options and loss not in losses:
                raise ConfigError(
                    f"tasks.{name}.options.{option}: the loss {loss!r} has no {option}",
                    f"leave it out, or set tasks.{name}.loss: {losses[0]}",
                )
        return loss

    def check(self) -> None:
        """Raise ConfigError where options and target do not fit each other."""

    @property
    @abstractmethod
    def channels(self) -> int:
        """Width of the head's last layer."""

    @property
    @abstractmethod
    def metric_info(self) -> Mapping[str, MetricInfo]:
        """Every metric that `metrics().compute()` gives, in its order, with the target's unit."""

    @property
    def error_scale(self) -> float:
        """Size of an error in the primary metric that scores one half (see `gain.mean_score`)."""
        return self.spec.std

    def head_output(self) -> nn.Module | None:
        """The fixed function after the head's last layer; none: the layer's own output."""
        return None

    @property
    def head_bias(self) -> float | None:
        """What the bias of the head's last layer starts at; none: as the layer draws it."""
        return None

    # With torch, for training.

    @abstractmethod
    def known(self, target: Tensor) -> Tensor:
        """Where a batched target counts: bool, one for each of its elements."""

    @abstractmethod
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of a batch; zero (with a graph) where every element is ignored."""

    @abstractmethod
    def metrics(self) -> Metrics:
        """A fresh accumulator."""

    @abstractmethod
    def decode(self, output: Tensor) -> Tensor:
        """The head's raw output as a prediction in the target's own format and unit (of boundaries: probabilities)."""

    # Where a teacher's output is to be a label: see `sureness`.

    def certainty(self, output: Tensor) -> Tensor:
        """The probability of what `decode` gives for a raw output, one for each of the target's elements."""
        raise NotImplementedError(f"{self.kind} has no probability of a label")

    def disagreement(self, one: Tensor, other: Tensor) -> Tensor:
        """How far two targets are apart, of the shape of `known`."""
        raise NotImplementedError(f"{self.kind} does not compare two labels")

    # To read the outputs of a deployed model: as data, and with numpy alone.

    @property
    def decoding(self) -> Decoding:
        """What `decode` does, as data for programs that have no compactmtl."""
        return Decoding(op="none", how="as the program that made this kind of task says", gives=self.meaning)

    @abstractmethod
    def decode_array(self, output: Array) -> Array:
        """As `decode`, of an array; the same up to the rounding of the two libraries."""

    def read(self, output: Array) -> Array:
        """`decode_array` of a model's output (B, channels, ...). Raises ArtifactError for another number of channels."""
        if output.ndim < 2 or output.shape[1] != self.channels:
            raise ArtifactError(
                f"output {self.name!r} has shape {output.shape}, expected (batch, {self.channels}, …)",
                f"export the run again: model and {BUNDLE_FILE} don't belong together",
            )
        return self.decode_array(output)

    def probabilities(self, output: Array) -> dict[str, float]:
        """Of one image's raw output (channels,) by class name; empty where the kind has none for an image."""
        return {}

    @property
    def unknown(self) -> int | None:
        """What a decoded map holds where nothing is known, as where an image was cut off; none: not a number."""
        return 0

    @abstractmethod
    def picture(self, value: Array, reference: Array | None = None) -> pictures.Picture:
        """One decoded prediction or target (no batch dimension) as an (H, W, 3) picture.

        `reference` fixes the color scale, so that target and predictions compare.
        """

    @abstractmethod
    def caption(self, value: Array) -> str:
        """One decoded value in words, such as "31.2 years" or "female"; empty for most maps."""

    def legend(self, value: Array) -> Legend:
        """A map's picture in a few figures: classes with their colors, the range of a depth."""
        return ()

    @abstractmethod
    def summary(self, value: Array, probabilities: Mapping[str, float]) -> dict[str, Any]:
        """One decoded prediction for a program, as predictions.json keeps it: plain values that JSON can hold."""


class MapTask(Task):
    """A task whose output is a map (B, channels, H, W) at the input's size, or of cells of `stride` pixels."""

    dense: ClassVar[bool] = True
    default_head: ClassVar[str] = "fcn"

    def caption(self, value: Array) -> str:
        """A picture says it."""
        return ""

    def summary(self, value: Array, probabilities: Mapping[str, float]) -> dict[str, Any]:
        """Nothing but the picture."""
        return {"picture_only": True}


class ValueTask(Task):
    """A task whose output is one vector an image (B, channels)."""

    dense: ClassVar[bool] = False
    default_head: ClassVar[str] = "linear"

    def picture(self, value: Array, reference: Array | None = None) -> pictures.Picture:
        """A card with the caption."""
        return pictures.text_picture(self.caption(value))

    def summary(self, value: Array, probabilities: Mapping[str, float]) -> dict[str, Any]:
        """The caption, and the probabilities where there are any."""
        return {"caption": self.caption(value)} | (
            {"probabilities": dict(probabilities)} if probabilities else {}
        )


def _check_spec(name: str, kind: str, target: str, spec: TargetSpec, task_class: type[Task]) -> None:
    """Raise ConfigError where the target's format is not the one that this kind of task learns."""
    if spec.kind != task_class.target_kind:
        raise ConfigError(
            f"tasks.{name}: a {kind} task needs a target of kind {task_class.target_kind!r}, "
            f"but {target!r} is of kind {spec.kind!r}",
            f"set tasks.{name}.kind or tasks.{name}.target so that they agree",
        )
    if len(spec.classes) < task_class.least_classes:
        raise ConfigError(
            f"tasks.{name}: target {target!r} names {len(spec.classes)} classes, "
            f"needs at least {task_class.least_classes}",
            "mend the classes in the data set's target specification",
        )
    if not spec.std > 0:
        raise ConfigError(
            f"tasks.{name}: target {target!r} has standard deviation {spec.std}",
            "a target that is the same everywhere cannot be learned; check the training split",
        )
