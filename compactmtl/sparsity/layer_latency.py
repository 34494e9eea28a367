"""What a layer of a network takes by its widths, and what its weights add where they come from memory."""

from __future__ import annotations

import math

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

CLEARLY = 1.05  # how much slower a kernel for odd counts has to be to be avoided


class LayerLatency(BaseModel):
    """Milliseconds of one layer on a grid of output and input channels.

    `inputs` is none for a depthwise layer, whose inputs are its outputs; `ms` then has one column.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    outputs: tuple[int, ...] = Field(min_length=1)
    inputs: tuple[int, ...] | None = None
    ms: tuple[tuple[float, ...], ...]

    @model_validator(mode="after")
    def _grid(self) -> LayerLatency:
        for name, axis in (("outputs", self.outputs), ("inputs", self.inputs or (1,))):
            if list(axis) != sorted(set(axis)) or axis[0] < 1:
                raise ValueError(f"{name} are channel counts in rising order, found {list(axis)}")
        columns = len(self.inputs or (1,))
        if len(self.ms) != len(self.outputs) or any(len(row) != columns for row in self.ms):
            raise ValueError(f"ms needs {len(self.outputs)} rows of {columns} numbers")
        if min(map(min, self.ms)) < 0:
            raise ValueError("ms holds a negative latency")
        return self

    def scaled(self, factor: float) -> LayerLatency:
        """The same with all milliseconds times a factor."""
        return self.model_copy(update={"ms": tuple(tuple(factor * ms for ms in row) for row in self.ms)})

    @property
    def full(self) -> tuple[int, int | None]:
        """Output and input channels of the layer that was measured."""
        return self.outputs[-1], None if self.inputs is None else self.inputs[-1]

    def at(self, outputs: int, inputs: int | None) -> float:
        """Milliseconds between the grid's points: linear in both widths; the border's beyond the grid."""
        rows = np.array(self.ms)
        if self.inputs is None:
            columns = rows[:, 0]
        else:
            columns = np.array([np.interp(inputs or 0, self.inputs, row) for row in rows])
        return float(np.interp(outputs, self.outputs, columns))


Features = tuple[float, float, float, float, float]


def features(
    outputs: int, inputs: int | None, step: int, knee: float = math.inf, inputs_step: int | None = None
) -> Features:
    """What a layer's latency is a sum of: a constant, its steps of outputs and of inputs, their product, and what that is
    above `knee`, from where on the weights leave a cache. Inputs are taken in steps of their own, or of `step`.
    """
    read = inputs_step or step
    rows = float(math.ceil(outputs / step) * step)
    columns = 0.0 if inputs is None else float(math.ceil(inputs / read) * read)
    return 1.0, rows, columns, rows * columns, max(rows * columns - knee, 0.0)


def is_aligned(count: int | None, full: int | None, align: int) -> bool:
    """Whether a kernel for blocks of `align` channels takes this count."""
    return count is None or count == full or count % align == 0


def is_ragged(
    width: tuple[int, int | None], full: tuple[int, int | None], align: int, inputs_align: int | None
) -> bool:
    """Whether a runtime takes the kernel for other counts (outputs, inputs) than whole blocks: by the inputs alone where they have
    a multiple of their own, by both where they have none."""
    if inputs_align is not None:
        return not is_aligned(width[1], full[1], inputs_align)
    return not all(is_aligned(one, most, align) for one, most in zip(width, full, strict=True))


def weights_at(weights: float, full: tuple[int, int | None], width: tuple[int, int | None]) -> float:
    """How many of a layer's `weights` at full width (outputs, inputs) there are at another one."""
    shares = (count / most for count, most in zip(width, full, strict=True) if most and count is not None)
    return weights * math.prod(shares)


class Regime(BaseModel):
    """Milliseconds of a layer as a sum over `features`, in steps of `step` channels, or `inputs_step` of the inputs."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    step: int = Field(ge=1)
    inputs_step: int | None = Field(None, ge=1)  # none: as of the outputs
    constant: float = Field(0.0, ge=0)
    outputs: float = Field(0.0, ge=0)
    inputs: float = Field(0.0, ge=0)
    both: float = Field(0.0, ge=0)
    knee: float | None = Field(None, ge=0)  # none: there is no term beyond one
    beyond: float = Field(0.0, ge=0)

    def scaled(self, factor: float) -> Regime:
        """The same with all milliseconds times a factor."""
        terms = ("constant", "outputs", "inputs", "both", "beyond")
        return self.model_copy(update={name: factor * getattr(self, name) for name in terms})

    def at(self, outputs: int, inputs: int | None) -> float:
        """Milliseconds at these widths."""
        factors = (self.constant, self.outputs, self.inputs, self.both, self.beyond)
        knee = math.inf if self.knee is None else self.knee
        found = features(outputs, inputs, self.step, knee, self.inputs_step)
        return sum(f * x for f, x in zip(factors, found, strict=True))


class StaircaseLatency(BaseModel):
    """Milliseconds of one layer in steps of its channels, fitted to measurements.

    `full` is the widths (outputs, inputs) of the layer that was measured, inputs none for a depthwise layer, `weights` how
    many weights it has there. Runtimes choose a kernel by the counts: `aligned` holds where the inputs are a multiple of
    `inputs_align` or full, `ragged` elsewhere, and `uneven` comes on top where the outputs are no multiple of `align`.
    Without `inputs_align`, as for a depthwise layer, both counts are to be multiples of `align`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    full: tuple[int, int | None]
    align: int = Field(ge=1)
    inputs_align: int | None = Field(None, ge=1)
    aligned: Regime
    ragged: Regime
    uneven: Regime | None = None
    weights: float = Field(0.0, ge=0)

    @property
    def inputs(self) -> int | None:
        """The full number of inputs, none for a depthwise layer."""
        return self.full[1]

    @property
    def step(self) -> int:
        """The channels that the layer's kernel takes at a time, of its outputs and its inputs: see `step_of`."""
        return self.step_of(outputs=True, inputs=True)

    def step_of(self, *, outputs: bool, inputs: bool) -> int:
        """The channels that the layer's kernel takes at a time, of those of its sides that are asked for: no count between
        two multiples is faster than the next.

        Where counts that are no multiples of what kernels are written for are clearly slower, that is the step; else it is
        that of the fit.
        """
        half = self._half((self.align, self.inputs_align or self.align))
        even, odd = (one.at(*half) for one in (self.aligned, self.ragged))
        slower = odd > CLEARLY * even
        if self.inputs_align is not None:
            dear = self.uneven is not None and even + self.uneven.at(*half) > CLEARLY * even
            aligns = self.align if dear else 1, self.inputs_align if slower else 1
        elif self.aligned.inputs_step is not None:
            aligns = (self.align, self.align) if slower else (1, 1)
        else:  # of a depthwise layer, or of a table before version 5
            return self.align if slower else self.ragged.step
        steps = [1]
        if outputs:
            steps.append(math.lcm(self.aligned.step, aligns[0]))
        if inputs:
            steps.append(math.lcm(self.aligned.inputs_step or self.aligned.step, aligns[1]))
        return max(steps)

    def _half(self, aligns: tuple[int, int]) -> tuple[int, int | None]:
        """About half of both counts, as multiples of what kernels are written for."""
        outputs, inputs = (
            None if count is None else max(round(count / 2 / align), 1) * align
            for count, align in zip(self.full, aligns, strict=True)
        )
        return outputs or 0, inputs

    def scaled(self, factor: float) -> StaircaseLatency:
        """The same with all milliseconds times a factor."""
        parts = {name: getattr(self, name) for name in ("aligned", "ragged", "uneven")}
        return self.model_copy(
            update={name: None if one is None else one.scaled(factor) for name, one in parts.items()}
        )

    def is_ragged(self, outputs: int, inputs: int | None) -> bool:
        """Whether a runtime takes the slower kernel at these widths."""
        return is_ragged((outputs, inputs), self.full, self.align, self.inputs_align)

    def at(self, outputs: int, inputs: int | None) -> float:
        """Milliseconds at these widths; 0 for a layer without outputs or inputs, which is not there."""
        if outputs == 0 or inputs == 0:
            return 0.0
        found = (self.ragged if self.is_ragged(outputs, inputs) else self.aligned).at(outputs, inputs)
        if self.uneven is not None and not is_aligned(outputs, self.full[0], self.align):
            found += self.uneven.at(outputs, inputs)
        return found


class Memory(BaseModel):
    """What a network waits for weights that no cache holds from one run to the next: of all weights the first `held` are held,
    and each layer waits for its own part of the others, `ms` for each, or `ragged_ms` where the slower kernel reads them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    held: float = Field(ge=0)
    ms: float = Field(ge=0)
    ragged_ms: float | None = Field(None, ge=0)  # none: as `ms`

    def price(self, ragged: bool) -> float:
        """Milliseconds for each weight that comes from memory."""
        return self.ragged_ms if ragged and self.ragged_ms is not None else self.ms

    def share(self, total: float) -> float:
        """Of a network's weights, how many come from memory in every run."""
        return max(1 - self.held / total, 0.0) if total else 0.0

    def scaled(self, factor: float) -> Memory:
        """The same with all milliseconds times a factor."""
        ragged = None if self.ragged_ms is None else factor * self.ragged_ms
        return self.model_copy(update={"ms": factor * self.ms, "ragged_ms": ragged})
