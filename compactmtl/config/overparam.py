"""How layers are over-parameterized while they train: one section of the recipe. Source: arXiv:2308.13300."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from compactmtl.config.schema import Frozen, Positive, Share

KindName = Literal["svd", "cp", "tucker", "expandnet_cl", "expandnet_ck", "repvgg", "none"]
_DIAGONAL = ("svd", "cp", "tucker")


class AlternatingConfig(Frozen):
    """Pass 1 of each epoch trains the diagonals of the tasks, each on its own task's loss. Pass 2 trains all else."""

    share: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Share of an epoch's batches in pass 1."
    )
    tasks: Literal["all", "one"] = Field(
        "all",
        description="`all` trains the diagonals of all tasks on each batch. `one` takes one task in turn, "
        "which is faster.",
    )
    lr: Positive | None = Field(
        None, description="Learning rate of the diagonals. null: `train.optimizer.lr`."
    )
    start: Share = Field(0.0, description="Share of the epochs before the first pass 1.")
    warmup: Share = Field(
        0.1, description="Share of the steps of pass 1 in which its learning rate rises from 0."
    )


class OverparamConfig(Frozen):
    """Which layers are factorized while training, in which form, and how they are trained."""

    kind: KindName = Field(
        "svd",
        description="Form of the factorized layers. `svd` is that of arXiv:2308.13300; `cp` and `tucker` "
        "can replace it; the others are baselines.",
    )
    rank: Literal["full"] | Annotated[int, Field(ge=1)] | Positive = Field(
        "full",
        description="Rank of the factors: `full`, a number of factors (integer), or a multiple of the full "
        "rank (number with a decimal point). For ExpandNets the expansion rate (number).",
    )
    scope: Literal["encoder", "model"] = Field(
        "encoder", description="Layers that are factorized: those of the encoder, or of the whole model."
    )
    exclude: tuple[str, ...] = Field((), description="Glob patterns of layer names that stay plain.")
    depthwise: bool = Field(False, description="Factorize depthwise convolutions too.")
    training: Literal["joint", "alternating"] = Field(
        "joint",
        description="`joint` trains one diagonal on the balanced loss. `alternating` gives each task a "
        "diagonal and trains the diagonals in a pass of their own.",
    )
    alternating: AlternatingConfig = Field(
        AlternatingConfig(), description="Settings of `training: alternating`."
    )
    per_task: bool = Field(
        False,
        description="Give each task its own weight and its own encoder pass. Otherwise the diagonals of the"
        " tasks are multiplied.",
    )
    lr_scale: Positive = Field(1.0, description="Learning rate of the factors relative to the recipe's.")
    evaluation: Literal["auto", "contract", "sequence"] = Field(
        "auto",
        description="How a factorized layer is computed: `contract` multiplies the factors first, "
        "`sequence` applies them one after the other, `auto` takes what needs fewer MACs.",
    )
    keep_factors_below: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="Deploy a layer as a sequence of thin layers where that needs less than this share of "
        "the plain layer's MACs. null: always contract.",
    )

    @model_validator(mode="after")
    def _fits_the_kind(self) -> OverparamConfig:
        owned = self.training == "alternating" or self.per_task
        if owned and self.kind not in _DIAGONAL:
            raise ValueError(
                f"kind {self.kind} has no diagonals, which alternating and per_task need; svd, cp and tucker have them"
            )
        return self

    @property
    def owned(self) -> bool:
        """Whether each task has a diagonal of its own."""
        return self.training == "alternating" or self.per_task
