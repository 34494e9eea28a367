"""The plan: every edit of one surgery as data, enough to rebuild the small model from the recipe."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from torch import nn

from compactmtl.errors import ArtifactError

MOST_CHANNELS = 1 << 24  # of a module at full width: a plan is a file, and what it says is allocated
MOST_VALUES = 1 << 28  # for each image, of what stands in a module's place

Index = Annotated[int, Field(ge=0)]


def _can_be_held(shape: tuple[int, ...]) -> tuple[int, ...]:
    if math.prod(shape) > MOST_VALUES:
        raise ValueError(f"{math.prod(shape):,} values are more than the {MOST_VALUES:,} that are allowed")
    return shape


Shape = Annotated[tuple[Index, ...], AfterValidator(_can_be_held)]  # behind the batch


class _Edit(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)


class Slice(_Edit):
    """Keep these indices of one dimension of a parameter or buffer, in this order."""

    tensor: str
    dim: Index
    size: Annotated[int, Field(ge=1)] = Field(description="size of the dimension before")
    keep: tuple[Index, ...] = Field(min_length=1)
    groups: Annotated[int, Field(ge=1)] = Field(
        1,
        description="of a grouped convolution: `keep` lists each group's inputs, or outputs of a transposed one, "
        "counted over all groups",
    )

    @model_validator(mode="after")
    def _in_range(self) -> Slice:
        if max(self.keep) >= self.size * self.groups or len(set(self.keep)) != len(self.keep):
            raise ValueError(
                f"it keeps indices of {self.tensor} that are out of range or repeated (size {self.size})"
            )
        return self


class Scale(_Edit):
    """Rows of a weight or bias times a factor: makes up for attention's scale, which follows the width."""

    tensor: str
    rows: tuple[Index, ...] = Field(min_length=1)
    factor: float


class Merge(_Edit):
    """Constant inputs of a padded convolution merged into one carrier: W[:, carrier] += Σ ratio W[:, source]."""

    weight: str
    carrier: Index
    sources: tuple[Index, ...] = Field(min_length=1)
    ratios: tuple[float, ...]
    rows: tuple[Index, Index] | None = Field(
        None,
        description="of a grouped convolution: the group's filters, from the first to the one behind the last",
    )

    @model_validator(mode="after")
    def _some_rows(self) -> Merge:
        if self.rows is not None and self.rows[0] >= self.rows[1]:
            raise ValueError(f"it merges inputs of no filters of {self.weight}")
        return self

    @model_validator(mode="after")
    def _one_ratio_each(self) -> Merge:
        if len(self.ratios) != len(self.sources) or self.carrier in self.sources:
            raise ValueError(
                f"it merges inputs of {self.weight} into themselves or by a wrong number of ratios"
            )
        return self


class BiasShift(_Edit):
    """Constant inputs folded into a bias, one value a kept output; `new` where the layer had none."""

    bias: str
    values: tuple[float, ...]
    new: bool


class Gather(_Edit):
    """A layer that reads and writes only some channels of the tensors around it.

    `inputs`: positions in its input tensor. `outputs`: for each channel of its output tensor the layer's own
    output, or their number where it has none; there `constants` (empty: zeros) are written.
    """

    module: str
    inputs: tuple[Index, ...] | None = Field(None, min_length=1)
    outputs: tuple[Index, ...] | None = Field(None, min_length=1)
    constants: tuple[float, ...] = ()


class Join(_Edit):
    """Layers in a row that become one, in the order of their calls: it takes the place of `into`, an identity that of each other.

    Batch norms between them are among the `layers`.
    """

    layers: tuple[str, ...] = Field(min_length=2)
    into: str

    @model_validator(mode="after")
    def _one_of_them(self) -> Join:
        if self.into not in self.layers or len(set(self.layers)) != len(self.layers):
            raise ValueError(f"it joins {', '.join(self.layers)} into {self.into}, which is not one of them")
        return self


class Span(_Edit):
    """A layer that reads and writes only the channels from one to another of the tensors around it.

    `inputs`: the first in its input tensor and the one behind the last. `outputs`: the same in its output tensor of `size`
    channels; elsewhere there `constants` (empty: zeros) are written.
    """

    module: str
    inputs: tuple[Index, Index] | None = None
    outputs: tuple[Index, Index] | None = None
    size: Annotated[int, Field(ge=0, le=MOST_CHANNELS)] = 0
    constants: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _some_channels(self) -> Span:
        for span in (self.inputs, self.outputs):
            if span is not None and span[0] >= span[1]:
                raise ValueError(f"it takes no channels of {self.module}")
        if self.outputs is not None and self.outputs[1] > self.size:
            raise ValueError(f"it writes outside of the {self.size} channels behind {self.module}")
        if self.constants and len(self.constants) != self.size:
            raise ValueError(
                f"it has {len(self.constants)} constants for {self.size} channels of {self.module}"
            )
        return self


class ConstantEdit(_Edit):
    """A module that gives one value a channel whatever its input: the values stand in its place, and it leaves.

    `shape` is that of the values, such as (1, C, 1, 1), and () for the number 0; with `size` they are expanded to it behind
    the batch.
    """

    module: str
    shape: Shape = ()
    values: tuple[float, ...] = ()
    size: Shape = ()

    @model_validator(mode="after")
    def _a_value_each(self) -> ConstantEdit:
        if len(self.values) != (math.prod(self.shape) if self.shape else 0):
            raise ValueError(f"it has {len(self.values)} values for the shape {self.shape} of {self.module}")
        return self


class FullWidthEdit(_Edit):
    """A module that runs at full width, such as a LayerNorm: it gets the removed channels back as zeros, and drops them.

    Of its `size` channels the first `kept` remain, or those at `places`, where it counts channels in groups; they lie at
    `input_dim` and `output_dim`, counted from the last dimension (-1).
    """

    module: str
    size: Annotated[int, Field(ge=1, le=MOST_CHANNELS)]
    kept: Annotated[int, Field(ge=1)]
    input_dim: Annotated[int, Field(lt=0)]
    output_dim: Annotated[int, Field(lt=0)]
    places: tuple[Index, ...] = Field(
        (),
        description="of a norm over groups of channels: the places of those that remain among the original ones",
    )

    @model_validator(mode="after")
    def _places_in_order(self) -> FullWidthEdit:
        rising = all(one < other for one, other in zip(self.places, self.places[1:], strict=False))
        if self.places and (len(self.places) != self.kept or self.places[-1] >= self.size or not rising):
            raise ValueError(
                f"its places are not {self.kept} of {self.size} channels of {self.module}, in order"
            )
        return self

    @model_validator(mode="after")
    def _fewer(self) -> FullWidthEdit:
        if self.kept >= self.size:
            raise ValueError(f"it keeps {self.kept} of {self.size} channels of {self.module}")
        return self


def _read_as_current(version: object) -> object:
    """Version 1 says `widened` for `full_width`, and is the same otherwise."""
    return 2 if version == 1 else version


class Plan(_Edit):
    """Edits in the order in which they are applied: outputs that leave, constant modules, modules that nothing reads, fused blocks, contracted layers, merges, scales, slices, bias shifts, layer attributes, gathers,
    spans, modules at full width, identities, layers in a row that are joined.

    `signature` is a hash of the names and shapes of the model that the plan was made for.
    """

    version: Annotated[Literal[2], BeforeValidator(_read_as_current)] = 2
    signature: str
    align: Annotated[int, Field(ge=1)] = Field(1, description="multiple that channel counts were kept at")
    outputs: tuple[str | Index, ...] = Field(
        (), description="names or positions of the outputs that stay; none: all do"
    )
    absent: dict[str, Shape] = Field(
        default_factory=dict,
        description="modules that no output reads any more, and the shape behind the batch of the zeros in their place",
    )
    constants: tuple[ConstantEdit, ...] = ()
    fused: tuple[str, ...] = Field(
        (), description="blocks of branches that become one layer, by their own method"
    )
    contracted: tuple[str, ...] = Field(
        (), description="layers that compute their weight at every call, and become plain ones"
    )
    merges: tuple[Merge, ...] = ()
    scales: tuple[Scale, ...] = ()
    slices: tuple[Slice, ...] = ()
    biases: tuple[BiasShift, ...] = ()
    groups: dict[str, Annotated[int, Field(ge=1)]] = Field(
        default_factory=dict, description="new number of groups of grouped and depthwise convolutions"
    )
    attributes: dict[str, dict[str, int | tuple[int, ...]]] = Field(
        default_factory=dict, description="module -> attribute -> new value, where a forward counts channels"
    )

    gathers: tuple[Gather, ...] = ()
    spans: tuple[Span, ...] = Field(
        (), description="layers that read or write a part of the channels around them, in one piece"
    )
    full_width: tuple[FullWidthEdit, ...] = Field(
        (),
        description="modules that run at their original width; `widened` in plans of earlier versions",
        validation_alias=AliasChoices("full_width", "widened"),
    )

    identities: tuple[str, ...] = Field(
        (), description="layers and norms that hand their input on as it is, which leave"
    )
    joins: tuple[Join, ...] = ()

    @property
    def widened(self) -> tuple[FullWidthEdit, ...]:
        """Deprecated: `full_width`."""
        warnings.warn("Plan.widened is now Plan.full_width", DeprecationWarning, stacklevel=2)
        return self.full_width

    @property
    def empty(self) -> bool:
        return not self.slices

    @property
    def more_than_slices(self) -> bool:
        """Whether there are edits beside slices, such as folded constants."""
        edits = (
            self.merges,
            self.biases,
            self.scales,
            self.gathers,
            self.spans,
            self.contracted,
            self.fused,
            self.full_width,
            self.identities,
            self.joins,
        )
        return any(edits) or bool(self.outputs or self.absent or self.constants)

    def to_json(self) -> str:
        return self.model_dump_json(indent=1)

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "plan") -> Plan:
        """Read a plan. Raises ArtifactError where it is damaged or of another version."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise ArtifactError(
                f"{source}: not a plan that can be read: {where}: {first['msg']}",
                "run `compactmtl compact RUN` again",
            ) from error

    @classmethod
    def load(cls, path: Path) -> Plan:
        try:
            return cls.from_json(path.read_bytes(), str(path))
        except FileNotFoundError as error:
            raise ArtifactError(f"{path} does not exist", "run `compactmtl compact RUN` first") from error


def signature(model: nn.Module) -> str:
    """A hash of all parameter and buffer names and shapes."""
    shapes: Mapping[str, list[int]] = {name: list(value.shape) for name, value in model.state_dict().items()}
    return hashlib.sha256(json.dumps(shapes, sort_keys=True).encode()).hexdigest()
