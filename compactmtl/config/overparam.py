"""How layers are over-parameterized while they train: one section of the recipe. Source: arXiv:2308.13300."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from compactmtl.config.schema import Frozen, Positive, Share

KindName = Literal["svd", "cp", "tucker", "expandnet_cl", "expandnet_ck", "repvgg", "none"]
_DIAGONAL = ("svd", "cp", "tucker")


class AlternatingConfig(Frozen):
    """Pass 1 of each epoch: the tasks' diagonals, each on its own task's loss. Pass 2 trains all the rest."""

    share: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="share of an epoch's batches that pass 1 walks"
    )
    tasks: Literal["all", "one"] = Field(
        "all", description="every task's diagonals on each batch, or one task's in turn, which is faster"
    )
    lr: Positive | None = Field(None, description="of the diagonals; train.optimizer.lr by default")
    start: Share = Field(0.0, description="share of the epochs before the first pass 1")
    warmup: Share = Field(0.1, description="share of pass 1's steps in which its rate rises from 0")


class OverparamConfig(Frozen):
    """Which layers are trained in a richer form, which one, and how."""

    kind: KindName = Field(
        "svd", description="svd is the paper's; cp and tucker in its place, the others to compare with"
    )
    rank: Literal["full"] | Annotated[int, Field(ge=1)] | Positive = Field(
        "full",
        description="full, a number (int), or a share or multiple of full (float); ExpandNet's rate (float)",
    )
    scope: Literal["encoder", "model"] = "encoder"
    exclude: tuple[str, ...] = Field((), description="globs of layer names left plain")
    depthwise: bool = Field(False, description="take depthwise convolutions too")
    training: Literal["joint", "alternating"] = Field(
        "joint", description="one diagonal and one loss, or a diagonal a task, trained in a pass of their own"
    )
    alternating: AlternatingConfig = AlternatingConfig()
    per_task: bool = Field(
        False, description="a weight and an encoder pass a task, where else the tasks' diagonals multiply"
    )
    lr_scale: Positive = Field(1.0, description="learning rate of the factors over the recipe's")
    evaluation: Literal["auto", "contract", "sequence"] = Field(
        "auto", description="contract the weight, convolve in sequence, or what needs fewer MACs"
    )
    keep_factors_below: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="deploy thin layers in a row where they need less than this share of the plain MACs"
    )

    @model_validator(mode="after")
    def _fits_the_kind(self) -> OverparamConfig:
        owned = self.training == "alternating" or self.per_task
        if owned and self.kind not in _DIAGONAL:
            raise ValueError(f"kind {self.kind} has no diagonals for tasks to own; svd, cp and tucker have")
        return self

    @property
    def owned(self) -> bool:
        """Whether each task has a diagonal of its own."""
        return self.training == "alternating" or self.per_task
