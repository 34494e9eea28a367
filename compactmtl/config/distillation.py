"""Distillation: which teachers a recipe learns from, and what of them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from compactmtl.config.encoder import EncoderConfig
from compactmtl.config.schema import Frozen, Positive, Share

OWN = "self"  # the name of the teacher that is the model itself, earlier


class FeatureDistillationConfig(Frozen):
    """The features that the heads read also learn from a teacher's features for the same images."""

    teacher: str | None = Field(
        None,
        description="`self`, or the folder of a finished run, as for `distillation.teacher`. null: `encoder`, or else the "
        "teacher of the outputs.",
    )
    encoder: EncoderConfig | None = Field(
        None, description="An encoder with pretrained weights as the teacher, in place of `teacher`."
    )
    mean: tuple[float, ...] | None = Field(
        None,
        description="`data.mean` that `encoder` was trained with. null: that of its package of weights or of timm's "
        "pretrained weights, else the recipe's.",
    )
    std: tuple[Positive, ...] | None = Field(
        None, description="`data.std` that `encoder` was trained with. null: as for `mean`."
    )
    levels: Literal["all", "last"] = Field(
        "all",
        description="Which of the encoder's feature maps are compared: all that it gives the heads, or the last.",
    )
    loss: Literal["mse", "direction"] = Field(
        "mse",
        description="`mse` is the mean squared difference over the mean square of the teacher's features. `direction` is the "
        "squared distance of the channel vectors after each is scaled to length 1.",
    )
    weight: Positive = Field(1.0, description="Factor of the features' loss, which is added after balancing.")

    @model_validator(mode="after")
    def _one_teacher(self) -> FeatureDistillationConfig:
        if self.teacher is not None and self.encoder is not None:
            raise ValueError("encoder is a teacher, and so is teacher: give one of the two")
        if self.encoder is None and (self.mean or self.std):
            raise ValueError("mean and std are those of `encoder`, which is not given")
        if self.encoder is not None and not (self.encoder.pretrained or self.encoder.weights):
            raise ValueError(
                "encoder.weights: an encoder of random weights teaches nothing; give weights or pretrained: true"
            )
        return self


class DistillationConfig(Frozen):
    """The network also learns from a teacher: from its outputs, from its features, or from both."""

    teacher: str | None = Field(
        OWN,
        description="Teacher of the tasks' outputs. `self` is the model as it was at `start`. Otherwise the folder of a "
        "finished run; `{seed}` in it stands for the recipe's seed. null: outputs are not distilled.",
    )
    start: Share = Field(0.2, description="Share of all steps after which the teacher's loss is added.")
    weight: Positive = Field(
        1.0, description="Factor of the teacher's loss relative to the loss against the targets."
    )
    temperature: Positive = Field(
        2.0, description="Temperature that softens the class probabilities of teacher and student."
    )
    features: FeatureDistillationConfig | None = Field(
        None, description="Learn from a teacher's features. null: from outputs alone."
    )

    @model_validator(mode="after")
    def _something_to_learn(self) -> DistillationConfig:
        features = self.features
        if self.teacher is None and (features is None or (features.teacher or features.encoder) is None):
            raise ValueError(
                "teacher is null and features name none: there is no teacher; name one, or remove distillation"
            )
        return self

    @property
    def own(self) -> bool:
        """Whether a teacher is the model itself, earlier."""
        return OWN in self.names

    @property
    def names(self) -> tuple[str, ...]:
        """`self` and the folders of runs that teach, each once."""
        given = (self.teacher, self.features.teacher if self.features else None)
        return tuple(dict.fromkeys(name for name in given if name is not None))
