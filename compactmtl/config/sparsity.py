"""Structured sparsity while training: one section of the recipe. Source: arXiv:2308.12114."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import Field, model_validator

from compactmtl.config.registry import one_of
from compactmtl.config.schema import Frozen, Scalar, Share
from compactmtl.config.trust import is_class_name

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
AboveZero = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Reduction = Annotated[float, Field(gt=0, lt=1)]  # of 0 there is nothing to do, and 1 leaves no network
Before = Annotated[float, Field(ge=0, lt=1)]  # a share of all steps after which there are steps left
PenaltyName = Annotated[str, one_of("sparsity/penalties", own_class=True)]
After = Annotated[float, Field(gt=0, le=1)]  # a share of all steps before which there are steps
_MEASURES = ("macs", "parameters", "latency")
_KEYS = ("mac_reduction", "parameter_reduction", "latency_reduction")


class ReductionConfig(Frozen):
    """What is to be gone of the whole model after surgery: a share of exactly one measure."""

    mac_reduction: Reduction | None = Field(None, description="share of the model's MACs to be gone")
    parameter_reduction: Reduction | None = Field(None, description="share of its parameters")
    latency_reduction: Reduction | None = Field(None, description="share of its latency by `latency_table`")
    latency_table: str | None = Field(
        None, description="JSON file of layer latencies on the target; tools/latency_table.py measures one"
    )
    min_channels: Annotated[int, Field(ge=1)] = Field(8, description="least channels kept in a layer")
    min_share: Before = Field(0.0, description="least share of a layer's channels kept, where that is more")

    @model_validator(mode="after")
    def _one_measure(self) -> ReductionConfig:
        given = [key for key in _KEYS if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(_KEYS)}, found {' and '.join(given) or 'none'}")
        if self.latency_reduction is not None and self.latency_table is None:
            raise ValueError("latency_reduction needs latency_table")
        return self

    @property
    def key(self) -> str:
        """The measure's key in the recipe."""
        return next(key for key in _KEYS if getattr(self, key) is not None)

    @property
    def measure(self) -> Literal["macs", "parameters", "latency"]:
        """What is counted."""
        quantity: Literal["macs", "parameters", "latency"] = _MEASURES[_KEYS.index(self.key)]  # type: ignore[assignment]
        return quantity

    @property
    def reduction(self) -> float:
        """The share to be gone."""
        return float(getattr(self, self.key))


class SelectiveConfig(ReductionConfig):
    """Shrink only the channels that matter least for what they cost, on a schedule, to a stated target."""

    start: Before = Field(0.2, description="share of all steps after which shrinking begins")
    end: After = Field(0.6, description="share of all steps at which the target is reached")
    every: Annotated[int, Field(ge=1)] = Field(20, description="steps between rankings")
    threshold: AboveZero = Field(0.02, description="norm that the prox takes off a chosen group each step")
    importance: Literal["taylor", "fisher", "magnitude"] = Field(
        "taylor",
        description="what a channel is worth: |Σ w·∂L/∂w| over its norm's affine, its mean square, or its weights' norm",
    )
    cost_power: NonNegative = Field(
        1.0, description="channels go by importance over cost to this power; 0: by importance alone"
    )
    cost_of: Literal["left", "whole"] = Field(
        "whole",
        description="a channel costs what it takes away from the whole network, or from the network that is left: with "
        "the latter, layers that read a layer grown narrow become cheap and stay wide",
    )


class ControllerConfig(ReductionConfig):
    """A λ that is steered so that the target is reached at `end`; then λ is 0 and the zeros are held."""

    end: After = Field(0.5, description="share of all steps at which the target is reached")
    every: Annotated[int, Field(ge=1)] = Field(20, description="steps between settings of λ")
    weights: Literal["cost", "size"] = Field(
        "cost",
        description="λ of a layer's channels in proportion to what one costs of the target's measure, or alike",
    )


class PruneConfig(ReductionConfig):
    """Baselines: all at once at one point of training, then fine-tuning with the zeros held."""

    method: Literal["magnitude", "group_norm"] = Field(
        "magnitude",
        description="smallest l2 norm, each over its layer's mean; or Torch-Pruning's GroupNorm pruner",
    )
    at: Before = Field(0.5, description="share of all steps after which the channels go")
    regularize: Before = Field(
        0.35, description="share of all steps after which group_norm's regularization begins"
    )
    regularization: AboveZero = Field(1e-4, description="coefficient of group_norm's regularization")


class StrengthScheduleConfig(Frozen):
    """λ over the steps of the whole run, from `sparsity.warmup` on."""

    shape: Literal["linear", "cosine", "exponential"] = Field(
        "linear", description="how λ rises from 0 (exponential: from a thousandth)"
    )
    full: Share = Field(0.3, description="share of all steps after which λ is whole")
    release: After = Field(
        1.0, description="share of all steps after which λ is 0, the zeros are held and the survivors recover"
    )


class SparsityConfig(Frozen):
    """A penalty on channel groups of the shared layers."""

    groups: Literal["coupled", "block", "filter", "input_channel", "attention_head"] = Field(
        "coupled", description="what is zeroed together; input_channel is the paper's"
    )
    block: Annotated[int, Field(ge=2)] = Field(8, description="channels of a group of kind block")
    scope: Literal["encoder", "model"] = Field("encoder", description="layers whose channels may go")
    penalty: PenaltyName = Field(
        "group_lasso",
        description="what shrinks the groups, by name, or a class of your own as package.module:Class",
    )
    penalty_options: dict[str, Scalar | list[Scalar]] = Field(
        default_factory=dict, description="options of this penalty; see docs/sparsity.md"
    )
    # Options of the first penalties, which have keys of their own: short for the same key of `penalty_options`.
    l1: NonNegative = Field(1.0, description="scale of the sparse group lasso's part on single elements")
    l2: NonNegative = Field(1.0, description="scale of the sparse group lasso's part on whole groups")
    knee: AboveZero = Field(
        0.1, description="root mean square of a group's weights from which group_mcp leaves it alone"
    )
    strength: NonNegative | None = Field(None, description="λ; none where another section steers the zeros")
    schedule: StrengthScheduleConfig | None = Field(None, description="of λ; constant without one")
    warmup: Before = Field(0.05, description="share of all steps before the prox begins")
    controller: ControllerConfig | None = None
    selective: SelectiveConfig | None = None
    prune: PruneConfig | None = None
    shrink_every: Annotated[int, Field(ge=1)] | None = Field(
        None, description="epochs after which dead channels are removed while training goes on"
    )

    @model_validator(mode="after")
    def _steps_to_shrink_in(self) -> SparsityConfig:
        """Every way needs steps between its beginning and its end."""
        if self.selective is not None and not self.selective.start < self.selective.end:
            raise ValueError(
                f"sparsity.selective.start {self.selective.start} is not before sparsity.selective.end"
                f" {self.selective.end}"
            )
        if self.controller is not None and not self.warmup < self.controller.end:
            raise ValueError(
                f"sparsity.warmup {self.warmup} is not before sparsity.controller.end {self.controller.end}"
            )
        if self.schedule is not None and not self.warmup < self.schedule.release:
            raise ValueError(
                f"sparsity.warmup {self.warmup} is not before sparsity.schedule.release {self.schedule.release}:"
                " λ would be 0 at every step"
            )
        if self.shrink_every is not None and self.groups in ("filter", "input_channel"):
            raise ValueError(
                f"sparsity.shrink_every removes whole channels while training goes on, and sparsity.groups:"
                f" {self.groups} lie in one layer each; use coupled, block or attention_head, or leave out"
                " sparsity.shrink_every"
            )
        return self

    @model_validator(mode="after")
    def _one_control(self) -> SparsityConfig:
        ways = {
            "strength": self.strength,
            "controller": self.controller,
            "selective": self.selective,
            "prune": self.prune,
        }
        given = [name for name, value in ways.items() if value is not None]
        if len(given) != 1:
            raise ValueError(
                "sparsity needs exactly one of strength (a λ), controller (a λ that finds a target), selective (the least "
                f"important to a target) and prune (a baseline), found {' and '.join(given) or 'none'}"
            )
        if self.schedule is not None and self.strength is None:
            raise ValueError("sparsity.schedule is of sparsity.strength, which is not given")
        if self.groups in ("filter", "input_channel") and (self.selective or self.prune):
            raise ValueError(
                f"sparsity.groups: {self.groups} lie in one layer each and free nothing alone; "
                f"sparsity.{given[0]} needs coupled, block or attention_head"
            )
        prune = self.prune
        if prune is not None and prune.method == "group_norm" and prune.regularize >= prune.at:
            raise ValueError(
                f"sparsity.prune.regularize {prune.regularize} is not before sparsity.prune.at {prune.at}"
            )
        if self.schedule is not None and not self.warmup <= self.schedule.full <= self.schedule.release:
            raise ValueError(
                f"λ rises from sparsity.warmup {self.warmup} to sparsity.schedule.full {self.schedule.full} and is 0 from "
                f"sparsity.schedule.release {self.schedule.release}: they come in this order"
            )
        return self

    def options_of_penalty(self, known: Collection[str]) -> dict[str, Scalar | list[Scalar]]:
        """The options of a penalty that takes those `known`: `penalty_options` over the keys that stand for one of them."""
        short: dict[str, Scalar | list[Scalar]] = {"l1": self.l1, "l2": self.l2, "knee": self.knee}
        if is_class_name(self.penalty):  # has defaults of its own
            short = {}
        return {key: value for key, value in short.items() if key in known} | self.penalty_options

    @property
    def target(self) -> ControllerConfig | SelectiveConfig | PruneConfig | None:
        """What is to be gone, where the recipe says."""
        return self.controller or self.selective or self.prune

    @property
    def begin(self) -> float:
        """The share of all steps before which nothing is zeroed."""
        if self.selective is not None:
            return self.selective.start
        return self.prune.at if self.prune is not None else self.warmup
