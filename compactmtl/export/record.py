"""bundle.json as a typed record, format 2: all that a program needs to run the model, and where it came from.

`schema_text` is its JSON schema, which lies in every bundle as bundle.schema.json; docs/reference/bundle.md is written from
the same descriptions.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints, WithJsonSchema

from compactmtl.artifacts.layout import BUNDLE_SCHEMA
from compactmtl.config.recipe import TaskConfig
from compactmtl.config.schema import Frozen
from compactmtl.config.target import Target
from compactmtl.data.base import Preprocessing, Rule
from compactmtl.export.precision.record import PrecisionRecord
from compactmtl.tasks.base import TargetSpec
from compactmtl.tasks.decoding import Decoding, Values

VERSION = 2
SCHEMA_ID = "https://json-schema.org/draft/2020-12/schema"

# A file of the bundle is a plain name: no folder, no way out of the bundle.
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Color = Annotated[str, StringConstraints(pattern=r"^#[0-9a-f]{6}$")]
Shape = tuple[int | str, ...]
Colors = Literal["gray", "RGB", "RGBA", "bands"]
Byte = Annotated[int, Field(ge=0, le=255)]


class Resize(Frozen):
    """How a picture of another size is brought to the network's."""

    height: int = Field(description="Rows of the network's picture.")
    width: int = Field(description="Columns of the network's picture.")
    fixed: bool = Field(
        description="Whether the model takes this size alone. Otherwise it is the size of training, which works best."
    )
    how: Literal["stretch", "letterbox", "crop"] = Field(
        "stretch",
        description="`stretch`: both sides are scaled on their own, nothing is cut off or filled up. `letterbox`: both sides "
        "are scaled by one factor, the largest with which all of the picture fits, and the rest is filled with `fill`. "
        "`crop`: by the smallest factor with which the picture fills the network's, and what is over is cut off. Then "
        "one side of the scaled picture is the network's, and the other is rounded to the nearest whole number, halves up. "
        "The picture lies in the middle; an odd pixel of padding is below or to the right, an odd one that is cut off too.",
    )
    fill: tuple[Byte, ...] | None = Field(
        None,
        description="Of `letterbox`: the value of each channel of the padding, before it is normalized.",
    )
    filter: Literal["bilinear"] = Field("bilinear", description="The filter between pixels.")
    antialias: Literal[True] = Field(
        True,
        description="The filter widens with the factor when a picture becomes smaller, as `Image.resize` of Pillow does it "
        "(and as `cv2.resize` with INTER_LINEAR does not).",
    )
    rounded: Literal[True] = Field(
        True, description="The resized values are whole numbers of 8 bits again before they are normalized."
    )


class Normalize(Frozen):
    """What the program does to each value before the model sees it: (value * scale - mean) / std."""

    scale: float = Field(1 / 255, description="Factor, which brings 0 to 255 to 0 to 1.")
    mean: tuple[float, ...] = Field(
        description="What is subtracted from each channel, after the factor: from red, green and blue of RGB."
    )
    std: tuple[float, ...] = Field(description="What each channel is divided by, after that.")


class TensorRecord(Frozen):
    """One input or output of the model file."""

    name: str = Field(description="Its name in the model file.")
    shape: Shape = Field(description="Size of each axis; a name stands for a size that is free.")
    dtype: str = Field(description="Type of its numbers, by numpy's name.")
    axes: tuple[str, ...] = Field((), description="What each axis counts.")
    meaning: str = Field("", description="What it holds, in a sentence.")


class InputRecord(TensorRecord):
    """One input of the model file and how a picture becomes it."""

    layout: Literal["NCHW", "NHWC"] | None = Field(
        None, description="Order of the axes: N batch, C color, H height, W width."
    )
    channels: Annotated[int, Field(ge=1)] | None = Field(
        3, description="Channels of a picture. null: it is no picture."
    )
    colors: Colors | None = Field(
        "RGB",
        description="What the channels are, in their order. `bands`: those of the files, in theirs. null: it is no picture.",
    )
    values: tuple[float, float] | None = Field(
        None,
        description="Values of a picture of more than 8 bits that become 0 and 255: round((value - low) / (high - low) * "
        "255), halves up, clipped to 0 to 255; what is not a number becomes 0. null: 0 and 65535 for 16 bits, and other "
        "numbers are refused.",
    )
    picture: str = Field("", description="What becomes of each kind of picture file, in sentences.")
    resize: Resize | None = Field(None, description="How a picture gets the network's size.")
    normalize: Normalize | None = Field(
        None,
        description="What the program has to do to the values of 0 to 255, or to the numbers of a vector. null: nothing, the "
        "model does it itself.",
    )
    range: tuple[float, float] | None = Field(
        None, description="Least and greatest value that the input can have after all that."
    )
    in_model: str = Field("", description="What the model itself does to the values first, in a sentence.")


class OutputRecord(TensorRecord):
    """One output of the model file and how it becomes a value."""

    kind: str = Field("", description="Kind of task, such as `segmentation`.")
    values: Values = Field(
        "raw",
        description="What its numbers are. `value` and `vector` are in `unit` already; `mixed`: several kinds of numbers "
        "along axis 1, see `meaning`; `raw`: a kind of task of the user's own says.",
    )
    unit: str = Field(
        "", description="Unit of the decoded value, such as `years` or `m`; empty where it has none."
    )
    classes: tuple[str, ...] = Field((), description="Names of the classes, by index.")
    colors: tuple[Color, ...] = Field((), description="Color of each class in pictures, by index.")
    map: bool = Field(
        False,
        description="Whether it is a map over the picture. A map has the network's size: `to_picture` says how it gets the "
        "picture's.",
    )
    to_picture: str = Field(
        "",
        description="How a map gets the picture's own size, in sentences. Empty: it is none, or the bundle is of an older "
        "version; then by `resize` of the input, without its padding, and without a filter where it holds classes.",
    )
    unknown: int | None = Field(
        0,
        description="What a map of the picture's own size holds where a `crop` cut the picture off. null: not a number.",
    )
    in_model: Literal["argmax", "softmax", "sigmoid"] | None = Field(
        None, description="The function that the model file has behind the network's output. null: none."
    )
    decode: Decoding | None = Field(
        None,
        description="How its numbers become the value. null: a bundle of an older version does not say.",
    )


class GoldenTensor(Frozen):
    """How an input or output is stored, and how far another may be from it."""

    step: Annotated[int, Field(ge=1)] = Field(
        1, description="Only every `step`-th row and column is stored, from the first on."
    )
    tolerance: Annotated[float, Field(ge=0)] = Field(
        description="Largest |difference| as a share of the largest stored |value|. Of whole numbers, such as class indices, "
        "the share of them that may differ."
    )


class Golden(Frozen):
    """A made picture, or arrays, and what the model gives for them: a program that gets the same has everything right."""

    picture: FileName | None = Field(
        description="The picture: of another size and shape than the network's. null: the model takes arrays, and those of "
        "`arrays` are what is fed to it."
    )
    arrays: FileName = Field(
        description="A numpy archive (.npz) by name: the input as the model takes it, each output as the model gives it."
    )
    inputs: dict[str, FileName] = Field(
        default_factory=dict,
        exclude_if=lambda inputs: not inputs,
        description="Of a model of several inputs the file of each, by name: made pictures, and vectors as .npy.",
    )
    tensors: dict[str, GoldenTensor] = Field(description="By input or output.")
    values: dict[str, Any] = Field(
        description="By output the decoded value in a few figures. Of a map they are taken at the network's size, without "
        "padding; classes without a pixel are left out."
    )
    made_by: str = Field(description="What ran the model: the runtime with its version, or torch.")


class Runtime(Frozen):
    """What runs the model file."""

    name: str = Field(description="The backend, as the target names it.")
    package: str = Field(
        description="What pip installs it from: a package, or several with spaces between them."
    )
    version: str = Field(
        "",
        description="The version of the first package that the bundle was made with; empty where it was not there.",
    )


class BundleTask(Frozen):
    """What compactmtl keeps of a task."""

    kind: str = Field(description="Kind of task.")
    primary: str = Field(description="The metric that a one-line summary shows.")
    dense: bool = Field(description="Whether the output is a map.")
    channels: int = Field(description="Width of the head's last layer.")
    config: Annotated[TaskConfig, WithJsonSchema({"type": "object"})] = Field(
        description="The recipe's section."
    )
    spec: Annotated[TargetSpec, WithJsonSchema({"type": "object"})] = Field(
        description="The data set's target: format, classes, unit, statistics of training."
    )


class Training(Frozen):
    """What compactmtl itself reads to rebuild the tasks. A program that runs the model needs nothing of it."""

    tasks: dict[str, BundleTask] = Field(description="By task.")
    preprocessing: Annotated[Preprocessing | None, WithJsonSchema({"type": ["object", "null"]})] = Field(
        description="How the images of training were made: `size`, `mean`, `std`, `resize`, `range`. What a program has to do "
        "is in `inputs`. null: the inputs are arrays, or nobody said how pictures become them. Of several inputs it is the "
        "first picture's."
    )
    inputs: Annotated[dict[str, Rule], WithJsonSchema({"type": "object"})] = Field(
        default_factory=dict,
        exclude_if=lambda inputs: not inputs,
        description="The same of each input by name, and `mean` and `std` of vectors. It is there where the model takes more "
        "than one picture, or its inputs have names.",
    )


class BundleInfo(Frozen):
    """bundle.json."""

    model_config = ConfigDict(populate_by_name=True)

    schema_file: str = Field(
        BUNDLE_SCHEMA, alias="$schema", description="The JSON schema of this file, in the same folder."
    )
    version: Literal[2] = Field(2, description="Format of this file.")
    model: FileName = Field(description="The model file.")
    runtime: Runtime | None = Field(None, description="What runs it.")
    inputs: tuple[InputRecord, ...] = Field(min_length=1, description="What the model takes.")
    outputs: tuple[OutputRecord, ...] = Field(min_length=1, description="What the model gives.")
    golden: Golden | None = Field(None, description="A picture with what the model gives for it.")
    files: dict[FileName, Sha256] = Field(description="SHA-256 of each model file.")
    run: str = Field(description="Name of the run or model that was exported.")
    compact: bool = Field(description="Whether channels were removed.")
    target_name: str = Field(description="The target by name.")
    target: Annotated[Target, WithJsonSchema({"type": "object"})] = Field(
        description="The target with every value, without paths of a machine: see the reference of target keys."
    )
    training: Training = Field(description="What compactmtl itself reads. A program needs nothing of it.")
    recipe_sha256: str | None = Field(
        description="Hash of the recipe. null: the model is not of a run, but a module or ONNX file of its own."
    )
    plan_sha256: str | None = Field(
        None, description="Hash of the surgery's plan; null: no channel was removed."
    )
    weights_sha256: str | None = Field(
        None, description="Hash of the checkpoint or compact model that was exported."
    )
    versions: dict[str, str] = Field(description="Versions of all packages.")
    created: str = Field(description="When it was exported, UTC.")
    precision: Annotated[PrecisionRecord | None, WithJsonSchema({"type": ["object", "null"]})] = Field(
        None, description="What was lowered, what stayed in float32 and why, every attempt. null: float32."
    )

    @property
    def tasks(self) -> dict[str, BundleTask]:
        """What compactmtl keeps of each task."""
        return self.training.tasks

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How the images of training were made; None where the model takes arrays."""
        return self.training.preprocessing

    @property
    def rules(self) -> dict[str, Rule]:
        """How each input is made, by name; none where the model takes arrays."""
        if self.training.inputs or self.preprocessing is None:
            return dict(self.training.inputs)
        return {one.name: self.preprocessing for one in self.inputs}

    def text(self) -> str:
        """The file's content: lists of numbers and names on one line, and of `decode` only what its operation needs."""
        values = self.model_dump(mode="json", by_alias=True)
        for output in values["outputs"]:
            rule = output["decode"] or {}
            output["decode"] = {key: value for key, value in rule.items() if value is not None} or None
        text = json.dumps(values, indent=2, ensure_ascii=False)
        return _LIST.sub(lambda match: f"[{_BREAK.sub(', ', match[1])}]", text) + "\n"


# A list of scalars as json.dumps breaks it into lines; a line break inside a text is escaped there.
_SCALAR = r'(?:"(?:[^"\\]|\\.)*"|[-+.\w]+)'
_LIST = re.compile(rf"\[\n\s+({_SCALAR}(?:,\n\s+{_SCALAR})*)\n\s+\]")
_BREAK = re.compile(r",\n\s+")


def schema_text() -> str:
    """The JSON schema of bundle.json, as it lies in the package and in every bundle."""
    schema = {"$schema": SCHEMA_ID, "$id": f"compactmtl-bundle-{VERSION}"}
    return json.dumps(schema | _untitled(BundleInfo.model_json_schema(by_alias=True)), indent=2) + "\n"


def _untitled(part: Any) -> Any:
    """A schema without the titles that pydantic makes of the keys' names."""
    if isinstance(part, dict):
        return {
            key: _untitled(value)
            for key, value in part.items()
            if not (key == "title" and isinstance(value, str))
        }
    return [_untitled(one) for one in part] if isinstance(part, list) else part
