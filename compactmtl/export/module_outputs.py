"""What the outputs of a user's module are: by the user's words a kind of task each, else raw tensors, and said to be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import Tensor

from compactmtl.config.recipe import TaskConfig
from compactmtl.config.schema import Frozen
from compactmtl.config.validate import validate_options
from compactmtl.errors import ConfigError
from compactmtl.export.describe import output_record
from compactmtl.export.record import InputRecord, OutputRecord, Shape
from compactmtl.tasks.base import TargetSpec, Task
from compactmtl.tasks.build import build_task
from compactmtl.tasks.common import nearest
from compactmtl.tasks.decoding import Decoding
from compactmtl.tasks.registry import task_class

RAW = "raw tensor of the network: whoever exported it did not say what it means"
ARRAY = "array as the network takes it: whoever exported it did not say how it is made"


class OutputWords(Frozen):
    """What a user says of one output."""

    kind: str | None = Field(None, description="Kind of task, such as `depth`; it says how values are read.")
    classes: tuple[str, ...] = Field((), description="Names of the classes, by index.")
    unit: str = Field("", description="Unit of the value, such as `m`.")
    meaning: str = Field("", description="Without a kind: what the numbers are, in a sentence.")
    options: dict[str, Any] = Field(default_factory=dict, description="Options of the kind of task.")


def described(
    given: Mapping[str, Mapping[str, Any]], outputs: Mapping[str, Tensor]
) -> tuple[dict[str, OutputWords], dict[str, Task]]:
    """The user's words by output, and the task that reads each output of a named kind.

    Raises ConfigError where a name, key or kind is unknown, or the kind does not fit the output's shape.
    """
    words: dict[str, OutputWords] = {}
    tasks: dict[str, Task] = {}
    for name, one in given.items():
        if name not in outputs:
            raise ConfigError(
                f"outputs names {name!r}, which the model does not give; it gives {', '.join(outputs)}",
                nearest(name, list(outputs)),
            )
        words[name] = said = validate_options(OutputWords, dict(one), f"outputs.{name}")
        if said.kind is None:
            if said.classes or said.options:
                raise ConfigError(
                    f"outputs.{name}: classes and options belong to a kind of task, and none is named",
                    "add kind, such as segmentation, or say in words what it is: meaning",
                )
            continue
        if said.meaning:
            raise ConfigError(
                f"outputs.{name}: kind {said.kind} has a meaning of its own", "leave meaning or kind out"
            )
        tasks[name] = _task(name, said, outputs[name])
    return words, tasks


def _task(name: str, said: OutputWords, output: Tensor) -> Task:
    assert said.kind is not None
    kind = task_class(said.kind, f"outputs.{name}.kind")
    spec = TargetSpec(kind.target_kind, classes=said.classes, unit=said.unit)
    task = build_task(name, config_of(said), spec)
    dimensions = 4 if task.dense else 2
    if output.dim() != dimensions or output.shape[1] != task.channels:
        wanted = f"(batch, {task.channels}, height, width)" if task.dense else f"(batch, {task.channels})"
        raise ConfigError(
            f"outputs.{name}: kind {said.kind} reads {wanted}, and the model gives {tuple(output.shape)}",
            "name the kind and classes that the output has, or only its meaning in words",
        )
    return task


def config_of(said: OutputWords) -> TaskConfig:
    """The section of a recipe that says the same."""
    return TaskConfig.model_validate({"kind": said.kind, "options": said.options})


def records(
    shapes: Mapping[str, Shape],
    dtypes: Mapping[str, str],
    words: Mapping[str, OutputWords],
    tasks: Mapping[str, Task],
    after: Mapping[str, str],
) -> tuple[OutputRecord, ...]:
    """What bundle.json says of every output."""
    return tuple(
        output_record(name, shape, dtypes[name], tasks[name], after.get(name))
        if name in tasks
        else raw_output(name, shape, dtypes[name], words.get(name, OutputWords()))
        for name, shape in shapes.items()
    )


def raw_output(name: str, shape: Shape, dtype: str, said: OutputWords) -> OutputRecord:
    """An output of no kind of task: its numbers are the value, in whatever words there are for them."""
    meaning = said.meaning or RAW
    gives = f"{meaning}, in {said.unit}" if said.unit else meaning
    decoding = Decoding(op="none", how="the numbers are the value", gives=gives)
    return OutputRecord(name=name, shape=shape, dtype=dtype, meaning=meaning, unit=said.unit, decode=decoding)


def array_input(name: str, shape: Shape, dtype: str) -> InputRecord:
    """An input of which nothing is known but its type."""
    return InputRecord(name=name, shape=shape, dtype=dtype, meaning=ARRAY, colors=None, in_model="nothing")
