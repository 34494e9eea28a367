"""Structured sparsity while training: one section of the recipe. Source: arXiv:2308.12114."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from compactmtl.config.latency_budget import LIMITS as LIMITS
from compactmtl.config.latency_budget import AboveZero as AboveZero
from compactmtl.config.latency_budget import LatencyBudget as LatencyBudget
from compactmtl.config.latency_budget import Reduction
from compactmtl.config.registry import names_schema, one_of
from compactmtl.config.schema import Frozen, Scalar, Share
from compactmtl.config.task_losses import TaskLoss, check_held_out, check_losses
from compactmtl.config.words import key

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Before = Annotated[float, Field(ge=0, lt=1)]  # a share of all steps after which there are steps left
PenaltyName = Annotated[
    str, one_of("sparsity/penalties", own_class=True), names_schema("sparsity/penalties", own_class=True)
]
After = Annotated[float, Field(gt=0, le=1)]  # a share of all steps before which there are steps
ImportanceSteps = Annotated[int, Field(ge=1)]
# Options of the first penalties that also have keys of their own. Another penalty has `penalty_options` alone.
SHORT_KEYS: Mapping[str, tuple[str, ...]] = {"sparse_group_lasso": ("l1", "l2"), "group_mcp": ("knee",)}
Measure = Literal["macs", "parameters", "latency"]
_KEYS: Mapping[str, Measure] = {
    "mac_reduction": "macs",
    "parameter_reduction": "parameters",
    "latency": "latency",
}
REDUCTIONS = ("selective", "controller", "prune")  # sections of sparsity that take a reduction


class ReductionConfig(Frozen):
    """How much of the whole model is removed: by exactly one measure."""

    mac_reduction: Reduction | None = Field(None, description="Share of the whole model's MACs to remove.")
    parameter_reduction: Reduction | None = Field(
        None, description="Share of the whole model's parameters to remove."
    )
    latency: LatencyBudget | None = Field(
        None, description="What the whole model may take on a target: milliseconds, a speedup or a share."
    )
    min_channels: Annotated[int, Field(ge=1)] = Field(
        8, description="Least number of channels that stay in a layer."
    )
    min_share: Before = Field(
        0.0,
        description="Least share of a layer's channels that stays, where that is more than `min_channels`.",
    )

    @model_validator(mode="before")
    @classmethod
    def _former_keys(cls, data: Any) -> Any:
        """`latency_reduction` and `latency_table`, as recipes had them before `latency`."""
        if not isinstance(data, Mapping) or not {"latency_reduction", "latency_table"} & data.keys():
            return data
        rest = dict(data)
        share, table = rest.pop("latency_reduction", None), rest.pop("latency_table", None)
        if share is not None:
            if table is None:
                raise ValueError(
                    "latency_reduction needs latency_table; or give latency: {target: …, reduction: …}"
                )
            rest["latency"] = {"reduction": share, "table": table}
        return rest

    @model_validator(mode="after")
    def _one_measure(self) -> ReductionConfig:
        given = [key for key in _KEYS if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(_KEYS)}, found {' and '.join(given) or 'none'}")
        return self

    @property
    def key(self) -> str:
        """The measure's key in the recipe, such as `mac_reduction` or `latency.ms`."""
        key = next(key for key in _KEYS if getattr(self, key) is not None)
        return key if self.latency is None else f"{key}.{self.latency.limit}"

    @property
    def measure(self) -> Measure:
        """What is counted."""
        return _KEYS[self.key.partition(".")[0]]

    @property
    def amount(self) -> float:
        """The number given: the share to remove, or a latency budget's own limit."""
        return float(getattr(self.latency or self, self.key.rpartition(".")[2]))

    def reduction_of(self, total: float, whole_ms: float | None = None) -> float:
        """The share to remove of a model that costs `total` in the measure's unit; below 0 where a budget is above that.

        `whole_ms` is what a speedup or a share of the latency is of, `total` where it is not known apart.
        """
        if self.latency is None:
            return self.amount
        return 1 - self.latency.milliseconds(total if whole_ms is None else whole_ms) / total


TasksEvery = Annotated[
    Annotated[int, Field(ge=0)] | None,
    Field(
        description="Steps between two looks at what each channel is worth to each task, one backward pass a task. null: "
        "a hundred looks, or as many as make 7 to 20 steps for each task, which takes 2 to 5 % of the training time. 0: none."
    ),
]


class SelectiveConfig(ReductionConfig):
    """Shrink the channels that are least important relative to their cost, on a schedule, until the target is met."""

    start: Before = Field(0.2, description="Share of all steps after which shrinking begins.")
    end: After = Field(0.6, description="Share of all steps at which the target is reached.")
    ramp: Literal["cubic", "linear", "cosine", "geometric"] = Field(
        "cubic",
        description="How the share that is due rises from 0 at `start` to 1 shortly before `end`: `cubic` is steep "
        "first, `linear` even, `cosine` gentle at both ends; `geometric` removes an equal share of what is left at "
        "every step. The gentle ones suit pretrained networks.",
    )
    every: Annotated[int, Field(ge=1)] = Field(20, description="Steps between two rankings of the channels.")
    importance_steps: ImportanceSteps = Field(
        20,
        description="Steps over which the importance is averaged, from the first step on, as an exponential mean.",
    )
    threshold: AboveZero = Field(
        0.02, description="Norm by which the proximal step shrinks a selected group at each step."
    )
    importance: Literal["taylor", "fisher", "magnitude"] = Field(
        "taylor",
        description="Importance of a channel: `taylor` is the running mean of |Σ w·∂L/∂w| over the "
        "channel's norm parameters (γ, β), or over its weights where it has no norm layer; "
        "`fisher` is the mean square of that sum; `magnitude` is the norm of the channel's "
        "weights.",
    )
    cost_power: NonNegative = Field(
        1.0, description="Channels are ranked by importance / cost^`cost_power`. 0: by importance alone."
    )
    cost_of: Literal["left", "whole"] = Field(
        "whole",
        description="Network in which a channel's cost is counted: `whole` is the original network, `left` "
        "the network that remains at this step. With `left`, channels next to a layer that has "
        "become narrow count as cheap, so that layers end very narrow or at full width.",
    )
    tasks_every: TasksEvery = None
    losses: dict[str, TaskLoss] = Field(
        default_factory=dict,
        description="Most that a task may lose, as a share of its primary metric on the split `holdout`, such as `1 %` or "
        "0.01, below 1. Shrinking stops where a bound would break. Tasks that are not named may lose what they lose.",
    )
    checks: Annotated[int, Field(ge=1)] = Field(
        16, description="How often `losses` are measured between `start` and `end`, at even distances."
    )

    @model_validator(mode="after")
    def _losses(self) -> SelectiveConfig:
        check_losses(self.losses, self.tasks_every)
        return self


class ControllerConfig(ReductionConfig):
    """Adjust λ so that the target is reached at `end`. From then on λ is 0 and zeros stay zero."""

    end: After = Field(0.5, description="Share of all steps at which the target is reached.")
    every: Annotated[int, Field(ge=1)] = Field(20, description="Steps between two updates of λ.")
    weights: Literal["cost", "size"] = Field(
        "cost",
        description="`cost` gives each layer a λ in proportion to what one of its channels costs, `size` "
        "gives all layers the same λ.",
    )
    tasks_every: TasksEvery = None


class PruneConfig(ReductionConfig):
    """Baselines: remove channels once during training, then fine-tune with zeros that stay zero."""

    method: Literal["magnitude", "group_norm", "taylor"] = Field(
        "magnitude",
        description="`magnitude` removes the smallest l2 norms, each relative to its layer's mean. "
        "`group_norm` is Torch-Pruning's GroupNorm pruner. `taylor` is Torch-Pruning's group Taylor importance.",
    )
    at: Before = Field(
        0.5, description="Share of all steps after which the channels are removed, all at once."
    )
    regularize: Before = Field(
        0.35, description="Share of all steps after which the regularization of `group_norm` begins."
    )
    regularization: AboveZero = Field(1e-4, description="Coefficient of the regularization of `group_norm`.")
    importance_steps: ImportanceSteps = Field(
        20, description="Last steps before the removal over which the importance of `taylor` is averaged."
    )


class StrengthScheduleConfig(Frozen):
    """λ over the steps of the whole run, from `sparsity.warmup` on."""

    shape: Literal["linear", "cosine", "exponential"] = Field(
        "linear", description="How λ rises from 0 to `strength`. `exponential` starts at a thousandth of it."
    )
    full: Share = Field(0.3, description="Share of all steps after which λ has its full value.")
    release: After = Field(
        1.0,
        description="Share of all steps after which λ is 0. From there on zeros stay zero and the remaining"
        " channels recover.",
    )


class SparsityConfig(Frozen):
    """A penalty on channel groups of the shared layers."""

    groups: Literal["coupled", "block", "filter", "input_channel", "attention_head"] = Field(
        "coupled",
        description="Which parameters are zeroed together. `coupled` groups are removed as whole channels; "
        "`input_channel` is the group of arXiv:2308.12114.",
    )
    block: Annotated[int, Field(ge=2)] = Field(8, description="Channels per group where `groups` is `block`.")
    blocks: bool = Field(
        False,
        description="Residual branches may go as a whole, at the cost of all their layers: a group besides for each, for "
        "`selective` and `controller`.",
    )
    scope: Literal["encoder", "model"] = Field(
        "encoder",
        description="Layers whose channels may be removed: those of the encoder, or of the whole model.",
    )
    penalty: PenaltyName = Field(
        "group_lasso",
        description="Penalty on the groups by name, or a class of your own as `package.module:Class`, for "
        "`strength` and `controller`.",
    )
    penalty_options: dict[str, Scalar | list[Scalar]] = Field(
        default_factory=dict, description="Options of this penalty. See the list of penalties."
    )
    # Keys of `SHORT_KEYS`.
    l1: NonNegative = Field(
        1.0,
        description="Short for `penalty_options.l1`: factor of the part of `sparse_group_lasso` on single "
        "weights.",
    )
    l2: NonNegative = Field(
        1.0,
        description="Short for `penalty_options.l2`: factor of the part of `sparse_group_lasso` on whole "
        "groups.",
    )
    knee: AboveZero = Field(
        0.1,
        description="Short for `penalty_options.knee`: root mean square of a group's weights above which "
        "`group_mcp` no longer penalizes the group.",
    )
    strength: NonNegative | None = Field(
        None, description="λ of the penalty. null where another section controls the zeros."
    )
    schedule: StrengthScheduleConfig | None = Field(
        None, description="How λ changes over the steps. null: λ is constant."
    )
    warmup: Before = Field(0.05, description="Share of all steps before the first proximal step.")
    controller: ControllerConfig | None = Field(
        None, description="Adjust λ so that a target is met. null: off."
    )
    selective: SelectiveConfig | None = Field(
        None,
        description="Shrink only the least important channels, on a schedule, until a target is met. null: "
        "off.",
    )
    prune: PruneConfig | None = Field(
        None, description="Baseline: remove channels once, then fine-tune. null: off."
    )
    shrink_every: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Remove dead channels from the network in training after every so many epochs. null: "
        "only at the end.",
    )

    norm_batches: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Training batches on which the running statistics of BatchNorm are estimated anew, from the "
        "first removal on after every epoch and before its validation. null: they stay as training updates them.",
    )

    @model_validator(mode="after")
    def _steps_to_shrink_in(self) -> SparsityConfig:
        """Every method needs steps between its start and its end."""
        if self.selective is not None and not self.selective.start < self.selective.end:
            raise ValueError(
                f"{key('sparsity.selective.start')} {self.selective.start} is not before {key('sparsity.selective.end')}"
                f" {self.selective.end}"
            )
        if self.controller is not None and not self.warmup < self.controller.end:
            raise ValueError(
                f"{key('sparsity.warmup')} {self.warmup} is not before {key('sparsity.controller.end')} {self.controller.end}"
            )
        if self.schedule is not None and not self.warmup < self.schedule.release:
            raise ValueError(
                f"{key('sparsity.warmup')} {self.warmup} is not before {key('sparsity.schedule.release')} {self.schedule.release}:"
                " λ would be 0 at every step"
            )
        if self.blocks and (
            self.groups in ("filter", "input_channel") or not (self.selective or self.controller)
        ):
            raise ValueError(
                f"{key('sparsity.blocks')} needs selective or controller, and groups that are channels of the whole"
                f" network; use {key('sparsity.groups')}=coupled, block or attention_head, or leave out {key('sparsity.blocks')}"
            )
        if self.shrink_every is not None and self.groups in ("filter", "input_channel"):
            raise ValueError(
                f"{key('sparsity.shrink_every')} removes whole channels during training, and groups of kind"
                f" {self.groups} lie in one layer each; use coupled, block or attention_head, or leave out"
                f" {key('sparsity.shrink_every')}"
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
                "sparsity needs exactly one of strength (a λ), controller (λ is adjusted until a target is met), "
                f"selective (the least important channels, until a target is met) and prune (a baseline), found {' and '.join(given) or 'none'}"
            )
        if self.schedule is not None and self.strength is None:
            raise ValueError(
                f"{key('sparsity.schedule')} needs {key('sparsity.strength')}, which is not given"
            )
        if self.groups in ("filter", "input_channel") and (self.selective or self.prune):
            raise ValueError(
                f"{key('sparsity.groups')}: {self.groups} lie in one layer each and remove no channel alone; "
                f"{key(f'sparsity.{given[0]}')} needs coupled, block or attention_head"
            )
        prune = self.prune
        if prune is not None and prune.method == "group_norm" and prune.regularize >= prune.at:
            raise ValueError(
                f"{key('sparsity.prune.regularize')} {prune.regularize} is not before {key('sparsity.prune.at')} {prune.at}"
            )
        if self.schedule is not None and not self.warmup <= self.schedule.full <= self.schedule.release:
            raise ValueError(
                f"{key('sparsity.warmup')} {self.warmup}, {key('sparsity.schedule.full')} {self.schedule.full} and "
                f"{key('sparsity.schedule.release')} {self.schedule.release} must be in rising order"
            )
        return self

    @property
    def options_of_penalty(self) -> dict[str, Scalar | list[Scalar]]:
        """The options of the penalty: `penalty_options` over the keys that stand for one of them."""
        return {key: getattr(self, key) for key in SHORT_KEYS.get(self.penalty, ())} | self.penalty_options

    @property
    def section(self) -> str | None:
        """The name of the section that states a target; None for a fixed λ."""
        return next((name for name in REDUCTIONS if getattr(self, name) is not None), None)

    @property
    def target(self) -> ControllerConfig | SelectiveConfig | PruneConfig | None:
        """The section that states a target; None for a fixed λ."""
        return self.selective or self.controller or self.prune

    @property
    def losses(self) -> dict[str, float]:
        """The most that each task may lose, where bounds are given."""
        return {} if self.selective is None else self.selective.losses

    def check_held_out(self, tasks: Collection[str], holdout: float) -> None:
        """Whether the tasks that may lose so much are in the recipe, and there is what they are watched on. Raises ValueError."""
        check_held_out(self.losses, tasks, holdout)

    @property
    def begin(self) -> float:
        """The share of all steps before which no group is zeroed."""
        if self.selective is not None:
            return self.selective.start
        return self.prune.at if self.prune is not None else self.warmup
