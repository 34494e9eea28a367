"""Several data sets for one network: each with its tasks, and how batches are drawn from them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import Field, SerializerFunctionWrapHandler, ValidationInfo, field_validator, model_serializer
from pydantic_core import PydanticKnownError

from compactmtl.config.augment import AugmentConfig
from compactmtl.config.schema import Frozen, Positive, Scalar

AT = "@"  # between a task and a source, in the names of metrics; no task's name has it
_TOLERANCE = 1e-6  # of a sum of shares that are written in decimals
# It is a part of the names of metrics and overrides, whose separators (@ . : / , = and spaces) it cannot have.
_NAME = re.compile(r"[\w-]+")


class SourceConfig(Frozen):
    """One of several data sets: where it lies, which tasks it labels, and what of its images differs."""

    name: str = Field(
        min_length=1,
        description="Data set by name, or a class of your own as `package.module:Class`.",
    )
    alias: str | None = Field(
        None,
        min_length=1,
        description="What the source is called in logs, metrics and `data.mixing`. null: the data set's name; of a class "
        "of your own the class's.",
    )
    root: str | None = Field(None, description="Folder of the data set. null: `data.root`.")
    tasks: tuple[str, ...] = Field(
        min_length=1,
        description="The recipe's tasks that this source labels. For its images all others are unknown.",
    )
    targets: dict[str, str] = Field(
        default_factory=dict,
        description="What the data set calls a task's target (task → target). By default it has the task's name.",
    )
    classes: dict[str, dict[str, str]] = Field(
        default_factory=dict,
        description="What a class of this source is to the task (task → this source's class → the task's class). Only "
        "where the names differ; several classes may become one.",
    )
    unmapped: Literal["error", "ignore"] = Field(
        "error",
        description="What to do about classes of this source that the task does not have: refuse them, or take their "
        "pixels and images as unknown.",
    )
    size: tuple[int, int] | None = Field(
        None,
        description="Height and width of its images while training; only where batches alternate. Measured and deployed "
        "is at `data.size`. null: `data.size`.",
    )
    resize: Literal["stretch", "letterbox", "crop"] | None = Field(
        None, description="As `data.resize`, while training. null: `data.resize`."
    )
    channels: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Channels of its images. One network takes one number, so they are `data.channels`. null: "
        "`data.channels`.",
    )
    range: tuple[float, float] | None = Field(None, description="As `data.range`. null: `data.range`.")
    augment: AugmentConfig | None = Field(
        None, description="Random transforms of its training images. null: `data.augment`."
    )
    mean: tuple[float, ...] | None = Field(
        None, description="As `data.mean`, of this source's images alone. null: `data.mean`."
    )
    std: tuple[Positive, ...] | None = Field(
        None, description="As `data.std`, of this source's images alone. null: `data.std`."
    )
    options: dict[str, Scalar | list[Scalar]] = Field(
        default_factory=dict, description="Options of this data set."
    )

    @property
    def called(self) -> str:
        """The source's name in logs and metrics."""
        return self.alias or self.name.rpartition(":")[2]

    def target(self, task: str) -> str:
        """What the data set calls a task's target."""
        return self.targets.get(task, task)

    @property
    def normalized_apart(self) -> bool:
        """Whether its images are normalized by numbers of their own."""
        return self.mean is not None or self.std is not None


class MixingConfig(Frozen):
    """How training batches are drawn from several data sets."""

    batches: Literal["joined", "alternating"] = Field(
        "joined",
        description="`joined`: every batch has images of every source; `alternating`: each batch is of one source, and "
        "sources may differ in size.",
    )
    by: Literal["size", "sqrt", "shares"] = Field(
        "size",
        description="A source's share of the images: in proportion to its training images, to their square root, or as "
        "`shares` says. In joined batches it is one image a batch at least.",
    )
    shares: dict[str, Positive] = Field(
        default_factory=dict, description="Share of each source by name, with `by: shares`. Their sum is 1."
    )
    epoch: Annotated[int, Field(ge=1)] | str | None = Field(
        None,
        description="What an epoch is: steps, or the source whose images each come once. null: as many images as all "
        "sources have.",
    )
    batch_norm: Literal["shared", "per_source"] = Field(
        "shared",
        description="Statistics of batch norm: `shared`, or of each source while training (γ and β are shared), folded for "
        "validation and deployment into those of a draw from all sources in their shares.",
    )


class Sourced(Frozen):
    """What a data section has where it names several data sets; without them it is written as if it had none of this."""

    sources: tuple[SourceConfig, ...] = Field(
        (),
        description="Several data sets for one network, in place of `data.name`. Empty: the one data set that `data.name` "
        "says.",
    )
    if TYPE_CHECKING:  # the section's own, declared after these
        name: str
        root: str | None
        size: tuple[int, int]
        channels: int
        batch_size: int
        options: dict[str, Scalar | list[Scalar]]
    mixing: MixingConfig = Field(
        MixingConfig(), description="How training batches are drawn from `data.sources`."
    )

    @field_validator("name", check_fields=False)  # the section's own, declared after these
    @classmethod
    def _name_of_all(cls, name: str, info: ValidationInfo) -> str:
        """Where there are sources the name follows from them; else it must be given."""
        if not name and "sources" in info.data:
            if not info.data["sources"]:
                raise PydanticKnownError("missing")
            return together(info.data["sources"])
        return name

    @model_serializer(mode="wrap")
    def _without_sources(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A section of one data set stays as it was before there could be several: recipes, hashes and caches too."""
        values: dict[str, Any] = handler(self)
        if not self.sources:
            values.pop("sources", None)
            values.pop("mixing", None)
        return values

    @property
    def names(self) -> frozenset[str]:
        """The data sets."""
        return frozenset(source.name for source in self.sources) or frozenset([self.name])

    @property
    def labels_apart(self) -> dict[str, tuple[str, ...]]:
        """The tasks that more than one source labels, each with those sources by name."""
        named: dict[str, tuple[str, ...]] = {}
        for source in self.sources:
            for task in source.tasks:
                named[task] = (*named.get(task, ()), source.called)
        return {task: sources for task, sources in named.items() if len(sources) > 1}


Section = TypeVar("Section", bound=Sourced)


def of_source(config: Section, source: SourceConfig, *, deployed: bool) -> Section:
    """The data section of one source alone; `deployed`: at the size that the network is deployed at."""
    changed: dict[str, Any] = {
        "name": source.name,
        "root": source.root if source.root is not None else config.root,
        "options": source.options,
        "sources": (),
        "mixing": MixingConfig(),
    }
    keys = ["range", "augment", "mean", "std", *(() if deployed else ("size", "resize"))]
    changed |= {key: value for key in keys if (value := getattr(source, key)) is not None}
    return config.model_copy(update=changed)


def as_deployed(config: Section) -> Section:
    """The section with every source at the size that the network is deployed at, also of its training split."""
    own = {"size": None, "resize": None}
    return config.model_copy(
        update={"sources": tuple(source.model_copy(update=own) for source in config.sources)}
    )


def check_sources(config: Sourced) -> None:
    """Raise ValueError where the sources or their mixing do not fit each other or the rest of the section."""
    if not config.sources:
        if config.mixing != MixingConfig():
            raise ValueError("data.mixing needs `data.sources`; name them, or take `data.mixing` out")
        return
    names = [source.called for source in config.sources]
    if config.name != together(config.sources):
        raise ValueError(
            f'data.name: `data.sources` name the data sets, and data.name is {config.name!r}; leave it out (`name: ""` '
            "drops an inherited one)"
        )
    if config.options:
        raise ValueError("data.options: with `data.sources` each source has its own; move them there")
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"data.sources: two are called {name!r}; give one of them an `alias`")
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"data.sources: {name!r} is no name of a source, which has letters, digits, _ and - alone: metrics are "
                f"called task{AT}source; give the source an `alias` of these"
            )
    for source in config.sources:
        _check_source(config, source)
    _check_mixing(config, names)


def check_tasks(
    config: Sourced, targets: Mapping[str, str | None], *, distilled: bool, replaced: Sequence[str]
) -> None:
    """Raise ValueError where a recipe's tasks and its sources do not fit each other.

    `targets` are what each task says its target is called, `replaced` the recipe's keys that replace or average the
    statistics of batch norm, or mix images of two sources to one: they cannot know of statistics by source.
    """
    sources = config.sources
    if not sources:
        return
    labeled = {task for source in sources for task in source.tasks}
    unknown = [(source, task) for source in sources for task in source.tasks if task not in targets]
    for task, target in targets.items():
        if task not in labeled:
            mistyped = [f", and {one.called} names {name}, which is no task" for one, name in unknown]
            raise ValueError(
                f"tasks.{task}: no source labels it{''.join(mistyped)}; name it in the `tasks` of one of data.sources, or "
                "take it out"
            )
        if target is not None:
            raise ValueError(
                f"tasks.{task}.target: with data.sources each source says what it calls the target; leave it out and write "
                f"`targets: {{{task}: {target}}}` in the source"
            )
    apart = [source.called for source in sources if source.normalized_apart]
    if apart and distilled:
        raise ValueError(
            f"distillation: a teacher takes images of one normalization, and {', '.join(apart)} has its own; remove "
            "the source's mean and std, or distillation"
        )
    if config.mixing.batch_norm == "per_source" and replaced:
        raise ValueError(
            f"data.mixing.batch_norm: per_source does not go with {replaced[0]}; remove one of the two"
        )
    if unknown:
        source, task = unknown[0]
        raise ValueError(
            f"data.sources: {source.called} names {task}, which is no task of the recipe; its tasks are "
            f"{', '.join(targets)}"
        )


def _check_source(config: Sourced, source: SourceConfig) -> None:
    if len(set(source.tasks)) != len(source.tasks):
        raise ValueError(f"data.sources: {source.called} names a task twice; name each once")
    for key in ("targets", "classes"):
        if strangers := sorted(set(getattr(source, key)) - set(source.tasks)):
            raise ValueError(
                f"data.sources: {source.called} has {key} of {', '.join(strangers)}, which is none of its tasks; name it in "
                "its `tasks`, or take it out"
            )
    if source.channels not in (None, config.channels):
        raise ValueError(
            f"data.sources: {source.called} has channels {source.channels}, data.channels is {config.channels}; one "
            "network takes one number: set data.channels, or convert one of the data sets"
        )
    for key in ("mean", "std"):
        values = getattr(source, key)
        if values is not None and len(values) != config.channels:
            raise ValueError(
                f"data.sources: {source.called} has {len(values)} values of {key}, and data.channels is {config.channels}; all "
                "sources have the network's channels: give one value for each"
            )
    if source.size is not None and min(source.size) < 1:
        raise ValueError(
            f"data.sources: {source.called}: size needs positive height and width, found {list(source.size)}"
        )
    if source.range is not None and not source.range[0] < source.range[1]:
        raise ValueError(f"data.sources: {source.called}: range needs low < high, found {list(source.range)}")


def _check_mixing(config: Sourced, names: Sequence[str]) -> None:
    mixing = config.mixing
    if mixing.batches == "joined":
        sizes = {source.called: source.size or config.size for source in config.sources}
        if len(set(sizes.values())) > 1:
            said = ", ".join(f"{name} {height}x{width}" for name, (height, width) in sizes.items())
            raise ValueError(
                f"data.mixing.batches: joined batches need images of one size, found {said}; set `data.mixing.batches: "
                "alternating`, or one size for all"
            )
        if config.batch_size < len(names):
            raise ValueError(
                f"data.batch_size: {config.batch_size} is less than the {len(names)} sources, and a joined batch has images of "
                "each; raise it, or set `data.mixing.batches: alternating`"
            )
    if isinstance(mixing.epoch, str) and mixing.epoch not in names:
        raise ValueError(
            f"data.mixing.epoch: {mixing.epoch!r} is no source; name one of {', '.join(names)}, or a number of steps"
        )
    if mixing.by != "shares":
        if mixing.shares:
            raise ValueError("data.mixing.shares: set `data.mixing.by: shares`, or take them out")
        return
    if strangers := sorted(set(mixing.shares) - set(names)):
        raise ValueError(
            f"data.mixing.shares: {', '.join(strangers)} is no source; the sources are {', '.join(names)}"
        )
    if missing := [name for name in names if name not in mixing.shares]:
        raise ValueError(f"data.mixing.shares: none of {', '.join(missing)}; give one to every source")
    if not math.isclose(total := sum(mixing.shares.values()), 1, abs_tol=_TOLERANCE):
        raise ValueError(f"data.mixing.shares: their sum is {total:g}; make it 1")


def together(sources: Iterable[SourceConfig]) -> str:
    """What a section of several data sets is called."""
    return "+".join(source.called for source in sources)
