"""The shapes that an engine is built for: the optimization profile of an input with free dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from compactmtl.backends.tensorrt.options import SECTION, EngineConfig, ShapeRange
from compactmtl.errors import ConfigError

if TYPE_CHECKING:
    import tensorrt as trt


def shape_range(
    name: str, shape: tuple[int, ...], options: EngineConfig, batch: int, section: str = SECTION
) -> ShapeRange | None:
    """The shapes of an input, where -1 marks a free dimension; none where all are fixed.

    Args:
        name: of the input.
        shape: as the model declares it.
        options: of the target.
        batch: for which kernels are chosen, where the batch is free.
        section: name of the options in the target, for messages.

    Raises ConfigError where a dimension beside the batch is free and the options don't bound it.
    """
    if all(size >= 0 for size in shape):
        return None
    if given := options.shapes.get(name):
        fits = len(given.opt) == len(shape) and all(
            size in (-1, low, high) for size, low, high in zip(shape, given.min, given.max, strict=True)
        )
        if not fits or any(
            size >= 0 and low != high for size, low, high in zip(shape, given.min, given.max, strict=True)
        ):
            raise ConfigError(
                f"{section}.shapes of {name} go from {given.min} to {given.max}, the model's input is {shape}",
                "change only dimensions that are free, which are -1",
            )
        return given
    if any(size < 0 for size in shape[1:]):
        raise ConfigError(
            f"input {name} has free dimensions {shape} beside the batch, and no optimization profile bounds them",
            f"bound them in the target: {section}.shapes.{name}: {{min: […], opt: […], max: […]}}",
        )
    rest = shape[1:]
    return ShapeRange(min=(1, *rest), opt=(batch, *rest), max=(max(batch, options.max_batch), *rest))


def network_profile(
    network: trt.INetworkDefinition, options: EngineConfig, batch: int, section: str
) -> dict[str, ShapeRange]:
    """The range of each input of a parsed network that has free dimensions. Raises as `shape_range`."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    ranges = {
        tensor.name: shape_range(tensor.name, tuple(tensor.shape), options, batch, section)
        for tensor in inputs
    }
    return {name: shapes for name, shapes in ranges.items() if shapes is not None}


def add_profile(
    builder: trt.Builder, config: trt.IBuilderConfig, profile: Mapping[str, ShapeRange], section: str
) -> None:
    """Give the builder the ranges. Raises ConfigError where it refuses them."""
    if not profile:
        return
    added = builder.create_optimization_profile()
    for name, shapes in profile.items():
        added.set_shape(name, shapes.min, shapes.opt, shapes.max)
    if config.add_optimization_profile(added) < 0:
        raise ConfigError(f"TensorRT refuses the shapes {dict(profile)}", f"change {section}.shapes")
