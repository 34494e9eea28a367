"""dataset.yaml: what a folder of the user's own holds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from compactmtl.config.recipe import Frozen, Share

MAPS = ("mask", "depth", "normals")
_OF_KINDS = {  # keys that say something of some kinds alone
    "classes": ("mask", "class", "multilabel"),
    "ignore_index": ("mask", "class"),
    "mirrored": ("mask",),
    "unit": ("scalar", "depth"),
    "units_per_metre": ("depth",),
}


class FolderTarget(Frozen):
    """One target: a folder of maps named like the images (mask, depth, normals), or a CSV table (the others)."""

    kind: Literal["mask", "depth", "normals", "class", "multilabel", "scalar"]
    path: str | None = Field(None, description="folder or .csv file; by default the target's name")
    classes: tuple[str, ...] = Field((), description="names of the classes, in the order of their numbers")
    ignore_index: int | None = Field(
        None, description="mask value, or cell of a class's table, that counts nowhere"
    )
    mirrored: tuple[tuple[str, str], ...] = Field(
        (), description="pairs of a mask's classes that change places in a mirror image"
    )
    unit: str = Field("", description="unit of a scalar, such as years; of depth it is metres")
    units_per_metre: Annotated[float, Field(gt=0)] = Field(
        1000.0, description="what one metre is in depth files"
    )

    @model_validator(mode="after")
    def _classes(self) -> FolderTarget:
        least = {"mask": 2, "class": 2, "multilabel": 1}.get(self.kind, 0)
        if len(self.classes) < least:
            raise ValueError(f"classes needs at least {least} names for a target of kind {self.kind}")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes names one class twice")
        if not all(name.strip() == name != "" for name in self.classes):
            raise ValueError("classes has a name that is empty, or that begins or ends with a space")
        if self.kind == "depth" and self.unit not in ("", "m"):
            raise ValueError(
                f"unit {self.unit!r}: depth comes in metres; say what a file's numbers are by units_per_metre"
            )
        if self.kind == "mask" and len(self.classes) > 255:
            raise ValueError("classes has more than 255 names, which a mask cannot hold")
        for key, kinds in _OF_KINDS.items():
            if key in self.model_fields_set and self.kind not in kinds:
                raise ValueError(
                    f"{key} is of kind {' or '.join(kinds)}, not of a target of kind {self.kind}"
                )
        if self.ignore_index is not None:
            self._check_ignored(self.ignore_index)
        if unknown := {label for pair in self.mirrored for label in pair} - set(self.classes):
            raise ValueError(f"mirrored names {min(unknown)!r}, which is none of the classes")
        return self

    def _check_ignored(self, index: int) -> None:
        if self.kind == "mask" and not 0 <= index <= 255:
            raise ValueError(f"ignore_index {index} is no value of a mask, which holds 0 to 255")
        numbers = any(name.lstrip("-").isdecimal() for name in self.classes)  # then cells are never positions
        taken = str(index) in self.classes or (not numbers and 0 <= index < len(self.classes))
        if self.kind == "class" and taken:
            raise ValueError(f"ignore_index {index} is one of the classes, so it cannot mean an unknown one")


class FolderDescription(Frozen):
    """The contents of dataset.yaml."""

    description: str = ""
    images: str = Field("images", description="folder of the images")
    inputs: dict[str, str] = Field(
        default_factory=dict,
        exclude_if=lambda inputs: not inputs,
        description="folder of pictures or .csv file of an input beside the images, by the name that data.inputs gives it; by "
        "default the input's name",
    )
    targets: dict[str, FolderTarget] = Field(min_length=1)
    drawn: Literal["upright", "stored"] | None = Field(
        None,
        description="what maps without an EXIF orientation of their own were drawn on where their image has one: the "
        "upright picture or the stored pixels",
    )
    val: Share = Field(
        0.2, description="share of the images for val, where neither folders nor lists split them"
    )
    test: Share = Field(0.0, description="the same for test")

    @model_validator(mode="after")
    def _shares(self) -> FolderDescription:
        if not 0 < self.val + self.test < 1 or self.val == 0:
            raise ValueError("val and test need to leave images for each split: val > 0, val + test < 1")
        return self
