"""Latency of a network as a sum over its layers, from a table that was measured once on the target."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import nn

from compactmtl.errors import ArtifactError, ConfigError
from compactmtl.graph import ChannelGraph
from compactmtl.graph.inputs import Arguments, as_arguments, batch_size, tensors_in
from compactmtl.sparsity.layer_latency import LayerLatency, Memory, StaircaseLatency, weights_at

VERSION = 5  # of tables that are made now
RELIABLE = 0.15  # error in the median above which a table says too little to choose by

Widths = Mapping[str, tuple[int, int | None]]


class LatencyTable(BaseModel):
    """What each layer of a network takes on a target; `rest_ms` is what does not depend on any width, and `memory` what
    depends on the number of all weights together, none where they fit a cache.

    `image` is the size of one input, (C, H, W), and `tasks` names the network's tasks. A table of version 1 lacks them:
    it is checked by its layers' names and widths alone. From version 3 on a table says what it was measured with; versions
    1 and 2 were of float32. Versions before 4 know nothing of memory: each layer has one time at its widths. Those before 5
    have one multiple for outputs and inputs, and one price of memory.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    version: int = Field(1, ge=1, le=VERSION)
    target: str
    device: str = ""
    backend: str = ""
    runtime: str = ""  # the backend's version
    precision: str = "fp32"
    threads: int | None = None
    batch: int | None = None
    image: tuple[int, ...] | None = None
    tasks: tuple[str, ...] | None = None
    rest_ms: float = Field(0.0, ge=0)
    layers: dict[str, LayerLatency | StaircaseLatency] = Field(min_length=1)
    memory: Memory | None = None
    whole_ms: float | None = None  # of the whole network as it was timed; none: by the sum of its layers
    error: float | None = None  # median relative error over the measured networks; none: not known
    kit: str | None = None  # hash of the device kit that measured it elsewhere; none: compactmtl did

    @property
    def unreliable(self) -> bool:
        """Whether it is too far off what it was made of to choose by."""
        return self.error is not None and self.error > RELIABLE

    @model_validator(mode="after")
    def _of_a_network(self) -> LatencyTable:
        if self.version > 1 and (not self.image or self.tasks is None):
            raise ValueError(f"a table of version {self.version} names its image and tasks")
        if self.memory is not None and not all(
            isinstance(one, StaircaseLatency) for one in self.layers.values()
        ):
            raise ValueError("a table that knows what memory costs knows the weights of all layers")
        return self

    @classmethod
    def load(cls, path: Path | str) -> LatencyTable:
        """Read a table. Raises ConfigError where there is none, ArtifactError where it is damaged."""
        try:
            content = Path(path).read_bytes()
        except FileNotFoundError as error:
            raise ConfigError(
                f"{path}: no such latency table",
                "measure one: compactmtl latency RECIPE --target TARGET --out TABLE.json",
            ) from error
        return cls.from_json(content, str(path))

    @classmethod
    def from_json(cls, content: str | bytes, what: str) -> LatencyTable:
        """The table in a text, which errors call `what`. Raises ArtifactError where it is none."""
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the text"
            said = f"{what}: not a latency table: {where}: {first['msg']}"
            raise ArtifactError(said, "measure it again") from error

    def save(self, path: Path | str) -> None:
        """Write the table as JSON."""
        Path(path).write_text(json.dumps(self.model_dump(mode="json"), indent=1) + "\n")

    def check(
        self, widths: Widths, image: tuple[int, ...] | None = None, tasks: tuple[str, ...] | None = None
    ) -> None:
        """Raise ConfigError where the table is of another input size or of other tasks, lacks a layer of the model or
        was measured at other full widths. What is None, here or in the table, is not compared.
        """
        mend = "measure one for this recipe: compactmtl latency RECIPE --target TARGET --out TABLE.json"
        if None not in (self.image, image) and self.image != image:
            raise ConfigError(
                f"the latency table of {self.target} was measured at images of {self.image}, the network reads {image}",
                mend,
            )
        if self.tasks is not None and tasks is not None and set(self.tasks) != set(tasks):
            raise ConfigError(
                f"the latency table of {self.target} was measured with the tasks {', '.join(sorted(self.tasks))}, the"
                f" network has {', '.join(sorted(tasks))}",
                mend,
            )
        for name, (outputs, inputs) in widths.items():
            if name not in self.layers:
                raise ConfigError(f"the latency table of {self.target} has no layer {name!r}", mend)
            if (self.layers[name].inputs is None) != (inputs is None):
                raise ConfigError(
                    f"the latency table of {self.target} has another kind of layer at {name!r}", mend
                )
            measured = self.layers[name].full
            if measured != (outputs, inputs):
                raise ConfigError(
                    f"the latency table of {self.target} has {name!r} with (outputs, inputs) up to {measured},"
                    f" the network with {(outputs, inputs)}",
                    mend,
                )

    def check_inputs(self, arguments: Arguments) -> None:
        """Raise ConfigError where the table was measured at another batch or size of images than these arguments of a forward."""
        if self.batch is not None and (batch := batch_size(arguments)) != self.batch:
            raise ConfigError(
                f"the latency table of {self.target} was measured at a batch of {self.batch}, these inputs have {batch}",
                f"give {self.batch}, or measure a table at this batch",
            )
        image = next(iter(tensors_in(arguments))).shape[1:]
        if self.image is not None and tuple(image) != self.image:
            raise ConfigError(
                f"the latency table of {self.target} was measured at images of {self.image}, these are {tuple(image)}",
                "give inputs of that size, or measure a table at this one",
            )

    def scaled(self, factor: float) -> LatencyTable:
        """The same with the milliseconds of all layers, and of none, times a factor; `whole_ms` stays."""
        layers = {name: layer.scaled(factor) for name, layer in self.layers.items()}
        memory = None if self.memory is None else self.memory.scaled(factor)
        return self.model_copy(update={"rest_ms": factor * self.rest_ms, "layers": layers, "memory": memory})

    def milliseconds(self, widths: Widths) -> float:
        """The network's latency with layers of these widths (outputs, inputs)."""
        layers = sum(self.layers[name].at(*width) for name, width in widths.items())
        return self.rest_ms + layers + self.memory_ms(widths)

    def memory_ms(self, widths: Widths) -> float:
        """What a network with layers of these widths waits for weights from memory, over its layers' own time."""
        if self.memory is None:
            return 0.0
        total = waited = 0.0
        for name, (outputs, inputs) in widths.items():
            layer = self.layers[name]
            if isinstance(layer, StaircaseLatency) and outputs and inputs != 0:
                own = weights_at(layer.weights, layer.full, (outputs, inputs))
                total += own
                waited += self.memory.price(layer.is_ragged(outputs, inputs)) * own
        return waited * self.memory.share(total)

    def predict(self, model: nn.Module, example_inputs: Any) -> float:
        """Milliseconds of the network that the table was made for, or of a cut of it, such as `compact` makes.

        Only its layers' names and widths are read. Raises ConfigError for inputs of another size or batch, and where the model has
        a layer that the table does not know, or one that is wider than the table's; SurgeryError where it cannot be traced.
        """
        arguments = as_arguments(model, example_inputs)
        self.check_inputs(arguments)
        graph = ChannelGraph.trace(model, arguments)
        widths = graph.widths(np.ones(graph.classes, dtype=bool))
        for name, width in widths.items():
            full = self.layers[name].full if name in self.layers else None
            if full is None or any(
                count > most for count, most in zip(width, full, strict=True) if count and most
            ):
                has = (
                    f"no layer {name!r}" if full is None else f"{name!r} with (outputs, inputs) up to {full}"
                )
                raise ConfigError(
                    f"the latency table of {self.target} has {has}, the model has it with {width}",
                    "predict the network that the table was made for, or a cut of it",
                )
        return self.milliseconds(widths)
