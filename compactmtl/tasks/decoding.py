"""How an output of a deployed model becomes a value, as data: what its numbers are, and one operation on them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from compactmtl.config.schema import Frozen, Share

Values = Literal["logits", "probabilities", "class index", "value", "vector", "mixed", "raw"]
Operation = Literal[
    "none", "first", "argmax", "threshold", "sigmoid", "expectation", "unit_vector", "panoptic"
]


class Decoding(Frozen):
    """How the numbers of an output become the value that they stand for. Axis 1 is the second one, after the batch."""

    op: Operation = Field(
        description="The operation. `none`: the output is the value. `first`: the one entry of axis 1. `argmax`: the "
        "index of the largest entry along axis 1. `threshold`: 1 where an entry is above `threshold`, else 0. "
        "`sigmoid`: 1 / (1 + exp(-x)). `expectation`: the sum over axis 1 of softmax times `centers`. `unit_vector`: "
        "each vector along axis 1 divided by its length. `panoptic`: instances by their centers, see `panoptic`."
    )
    how: str = Field(description="The same in a sentence, for whoever writes it in another language.")
    gives: str = Field(description="What comes out: its meaning, and its unit where it has one.")
    threshold: float | None = Field(None, description="Of `threshold`: what an entry must be above.")
    centers: tuple[float, ...] | None = Field(
        None, description="Of `expectation`: the value of each entry of axis 1, in the output's unit."
    )
    panoptic: InstanceDecoding | None = Field(None, description="Of `panoptic`: its numbers.")


class InstanceDecoding(Frozen):
    """How an output of K + 4 channels in cells becomes instances (Panoptic-DeepLab, arXiv:1911.10194, section 3.2).

    Channels: K + 1 class logits, of which 0 is the background; the logit of a center; the offset down and the offset right
    to the center.
    """

    cell: Annotated[int, Field(ge=1)] = Field(description="Pixels a side of a cell of the output.")
    offset_unit: float = Field(description="Pixels that an offset of 1 stands for.")
    threshold: Share = Field(description="Least confidence of a center: the sigmoid of its logit.")
    window: Annotated[int, Field(ge=1)] = Field(
        description="A center is the peak among so many cells a side."
    )
    limit: Annotated[int, Field(ge=1)] = Field(description="Most instances an image.")


Decoding.model_rebuild()
