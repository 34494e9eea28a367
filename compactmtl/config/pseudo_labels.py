"""Teachers that give the training images labels of a task where the data set has none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from compactmtl.config.schema import Frozen, Positive

ONNX = ".onnx"  # what a teacher's name ends in that is a file alone: the recipe says how it is fed and read
_OF_A_FILE = ("values", "classes", "size", "mean", "std")


class PseudoLabelConfig(Frozen):
    """Who labels a task's unlabeled training images, and how sure it has to be."""

    teacher: str = Field(
        min_length=1,
        description="Folder of a finished run, in which `{seed}` stands for the recipe's seed; folder of a bundle whose "
        "model is an ONNX file; or an ONNX file of any origin, which ONNX Runtime runs on the CPU.",
    )
    output: str | None = Field(
        None,
        description="The teacher's task, or the output of an ONNX file, that labels are taken from. null: the one that has "
        "the task's own name.",
    )
    confidence: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="Least probability of a label, pixel by pixel, image by image or tag by tag; what is less probable "
        "stays unknown. Only for masks, classes and tags: numbers and maps of numbers have no probability. null: every "
        "label is taken.",
    )
    agreement: Positive | None = Field(
        None,
        description="Of numbers and maps of numbers: how far the teacher's answers for an image and for its mirror image may "
        "be apart, in the unit of a number, as a share of their mean for depth and disparity, in degrees for normals; what "
        "is further apart stays unknown. null: every label is taken.",
    )
    values: Literal["logits", "probabilities", "class index"] | None = Field(
        None,
        description="Of an ONNX file that gives classes or tags, what its output is. null: `logits`. Numbers, depth and "
        "disparity have to be in the target's unit.",
    )
    classes: tuple[str, ...] | None = Field(
        None,
        description="Of an ONNX file: the names of its classes in their order. null: those of the target in theirs.",
    )
    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = Field(
        None,
        description="Of an ONNX file: height and width of the images that it is given. null: those that it is fixed to, "
        "else `data.size`.",
    )
    mean: tuple[float, ...] | None = Field(
        None,
        description="Of an ONNX file: what is subtracted from values in [0, 1], one for each channel. null: `data.mean`.",
    )
    std: tuple[Positive, ...] | None = Field(
        None, description="Of an ONNX file: divisor of values in [0, 1] after `mean`. null: `data.std`."
    )

    @model_validator(mode="after")
    def _consistent(self) -> PseudoLabelConfig:
        if self.confidence is not None and self.agreement is not None:
            raise ValueError(
                "agreement: confidence is for kinds with probabilities and agreement for the others; give one of the two"
            )
        if not self.is_file:
            for key in _OF_A_FILE:
                if getattr(self, key) is not None:
                    raise ValueError(
                        f"{key}: a run and a bundle say it themselves; leave it out, or name an {ONNX} file as teacher"
                    )
        if self.values == "class index" and self.confidence is not None:
            raise ValueError(
                "confidence: a class index has no probability; name an output of logits or probabilities, or leave "
                "confidence out"
            )
        return self

    @property
    def is_file(self) -> bool:
        """Whether the teacher is an ONNX file alone."""
        return self.teacher.lower().endswith(ONNX)

    @property
    def bound(self) -> str:
        """What a label has to be to be taken, as the end of a sentence; empty where every one is."""
        if self.confidence is not None:
            return f" at confidence >= {self.confidence:g}"
        return "" if self.agreement is None else f" at agreement <= {self.agreement:g}"


class PseudoLabeled(Frozen):
    """What a data section has where teachers label training images; without them it is written as if it had none of this."""

    pseudo_labels: dict[str, PseudoLabelConfig] = Field(
        default_factory=dict,
        exclude_if=lambda given: (
            not given
        ),  # a recipe without teachers reads as it did before there could be any
        description="Teachers (task → teacher) that label training images of which the data set has no label. They are used "
        "for training alone: no split that is measured has any.",
    )


def check_pseudo_labels(data: PseudoLabeled, targets: Mapping[str, str]) -> None:
    """Raise ValueError where teachers do not fit a recipe's tasks; `targets` is each task's."""
    taught: dict[str, str] = {}
    for task in data.pseudo_labels:
        if task not in targets:
            raise ValueError(
                f"data.pseudo_labels.{task}: the recipe has no task {task!r}; its tasks are {', '.join(targets)}"
            )
        other = taught.setdefault(targets[task], task)
        if other != task:
            raise ValueError(
                f"data.pseudo_labels.{task}: {other} and {task} learn from one target, {targets[task]!r}, and each names "
                "a teacher of it; keep one of the two"
            )
