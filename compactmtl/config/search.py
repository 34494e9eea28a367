"""The search of a sweep: which keys of a recipe are varied, what is wanted of the networks, and how trials are drawn."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from compactmtl.config.schema import Frozen, Scalar, Share
from compactmtl.config.yaml import flow

Choice = Scalar | list[Scalar]
Quantity = Literal["delta_m", "macs", "parameters", "latency"]
_WHOLE = 1e-9  # how far from a whole number of steps a range may be, for rounding


class ParameterConfig(Frozen):
    """The values that a key of the recipe takes in trials."""

    kind: Literal["choice", "float", "int"] = Field(
        description="`choice` takes one of `values`; `float` and `int` a number from `low` to `high`."
    )
    values: tuple[Choice, ...] = Field(
        (), description="What a `choice` is among: scalars and lists of scalars."
    )
    low: float | None = Field(None, description="Smallest value of a number.")
    high: float | None = Field(None, description="Largest value of a number.")
    log: bool = Field(False, description="Draw a number evenly on a logarithmic scale.")
    step: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="Distance of the values of a number. null: any value of a `float`, every one of an `int`.",
    )

    @model_validator(mode="after")
    def _fits(self) -> ParameterConfig:
        if self.kind == "choice":
            if self.low is not None or self.high is not None or self.step is not None or self.log:
                raise ValueError("a choice has values, and neither low, high, step nor log")
            if not self.values:
                raise ValueError("a choice needs values, and has none")
            texts = [flow(value) for value in self.values]
            if twice := [text for text in dict.fromkeys(texts) if texts.count(text) > 1]:
                raise ValueError(f"values has {twice[0]} twice")
            return self
        if self.values:
            raise ValueError(f"values belongs to a choice; a number of kind {self.kind} has low and high")
        if self.low is None or self.high is None:
            raise ValueError("a number needs low and high")
        self._check_range(self.low, self.high)
        return self

    def _check_range(self, low: float, high: float) -> None:
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"low must be less than high, found {low:g} and {high:g}")
        if self.kind == "int" and not all(float(one).is_integer() for one in (low, high, self.step or 1)):
            raise ValueError("an int needs whole numbers for low, high and step")
        if self.log and low <= 0:
            raise ValueError(f"log needs low > 0, found {low:g}")
        if self.log and self.step is not None:
            raise ValueError("log and step exclude each other")
        if self.step is not None:
            steps = (high - low) / self.step
            if round(steps) < 1 or abs(steps - round(steps)) > _WHOLE * max(steps, 1):
                raise ValueError(f"high must be a whole number of steps above low, found {steps:g} of them")


class ObjectiveConfig(Frozen):
    """One thing that is wanted of the networks."""

    name: Quantity = Field(
        description="`delta_m`: Δm on the held-out split against the sweep's baseline of the same seed, as large as "
        "possible. `macs` and `parameters` of the compacted network, and its measured `latency` on a target: as small as "
        "possible."
    )
    target: str | None = Field(None, description="Target on which the `latency` is measured.")

    @model_validator(mode="after")
    def _has_target(self) -> ObjectiveConfig:
        if self.name == "latency" and self.target is None:
            raise ValueError("latency needs the target that it is measured on, such as onnxruntime-cpu")
        if self.name != "latency" and self.target is not None:
            raise ValueError(f"target belongs to latency; {self.name} has none")
        return self

    @property
    def label(self) -> str:
        """The objective in results: its name, of a latency with the target."""
        return self.name if self.target is None else f"{self.name} on {self.target}"


class SamplerConfig(Frozen):
    """How the values of the next trial are drawn."""

    name: Literal["tpe", "nsga2", "random"] = Field(
        "tpe", description="Sampler of Optuna: TPE, NSGA-II, or independent draws."
    )
    seed: int = Field(
        0, description="Seed of the draws. Every trial has its own, made of this and of the trial's number."
    )
    startup: Annotated[int, Field(ge=0)] = Field(
        10, description="Trials that are drawn at random before `tpe` learns from their results."
    )


class PruningConfig(Frozen):
    """When a trial is given up.

    After an epoch its best held-out score so far is held against what finished trials had by then with the same seed: all of
    them if Δm is the only objective, else those that were expected to cost no more.
    """

    quantile: Share = Field(
        0.5, description="A trial is given up where its score lies below this quantile of the others' scores."
    )
    after_epochs: Annotated[int, Field(ge=1)] = Field(
        3, description="No trial is given up before it has trained this many epochs."
    )
    after_trials: Annotated[int, Field(ge=1)] = Field(
        5, description="No trial is given up before this many others can be held against it."
    )


class SearchConfig(Frozen):
    """A search over keys of a recipe."""

    study: str | None = Field(
        None, description="Name of the study in the storage. null: the name of the sweep."
    )
    recipe: str | None = Field(None, description="Recipe of every trial. null: the recipe of the sweep.")
    overrides: tuple[str, ...] = Field(
        (), description="`key=value` words, applied to the recipe of every trial after those of the sweep."
    )
    tasks: tuple[str, ...] = Field((), description="Train only these tasks. By default all.")
    parameters: Annotated[dict[str, ParameterConfig], Field(min_length=1)] = Field(
        description="The keys of the recipe that are varied, such as `train.optimizer.lr`, with their values."
    )
    objectives: Annotated[tuple[ObjectiveConfig, ...], Field(min_length=1)] = Field(
        description="What is wanted of the networks, at least one thing."
    )
    sampler: SamplerConfig = Field(SamplerConfig(), description="How the values of the next trial are drawn.")
    pruning: PruningConfig | None = Field(
        None, description="When a trial is given up before its end. null: never."
    )

    @model_validator(mode="after")
    def _once(self) -> SearchConfig:
        labels = [one.label for one in self.objectives]
        if twice := [label for label in dict.fromkeys(labels) if labels.count(label) > 1]:
            raise ValueError(f"objectives has {twice[0]} twice")
        if "seed" in self.parameters:
            raise ValueError(
                "parameters: seed is no parameter; every trial is trained with the sweep's seeds"
            )
        return self
