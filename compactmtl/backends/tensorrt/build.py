"""Build a TensorRT engine from an ONNX file: one path for 10.12 and later and for 11, strongly typed in both.

Precision is in the graph. Written against the bindings of 10.12, 10.16 and 11.4 (`tools/check_tensorrt_api.py`).
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compactmtl.backends.driver import CudaDevice
from compactmtl.backends.model_file import external_files, model_sha256
from compactmtl.backends.tensorrt.engine import EngineFacts, sha256
from compactmtl.backends.tensorrt.options import AUTO, SECTION, ShapeRange, TensorRTConfig, tensorrt_config
from compactmtl.backends.tensorrt.types import TypesSeen, check_types, compute_types, engine_layers
from compactmtl.config import trust
from compactmtl.config.target import Target
from compactmtl.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    import tensorrt as trt

# Settings that change the running of an engine and not the engine.
RUNTIME_KEYS = frozenset({"timing_cache", "lean_runtime", "cuda_graph", "unseen_types"})
MIB = 1 << 20
LONGEST_LOG = 12  # lines of TensorRT's own that an error quotes


class EngineBuildError(ArtifactError):
    """A model that TensorRT can't parse, or build an engine of."""


@dataclass(frozen=True)
class Built:
    """A serialized engine, its facts, and what its inspector says as JSON."""

    data: bytes
    facts: EngineFacts
    layers_json: str


def make_logger() -> tuple[trt.ILogger, list[str]]:
    """A logger and the list in which it keeps warnings and errors."""
    import tensorrt as trt

    kept: list[str] = []

    class KeepingLogger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # pybind11 wants it by name

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING):
                kept.append(f"{severity.name.lower()}: {msg}")

    return KeepingLogger(), kept


def settings_sha256(target: Target) -> str:
    """Hash of every key that changes the engine."""
    return sha256(
        tensorrt_config(target).model_dump_json(exclude=set(RUNTIME_KEYS)).encode()
        + f"{target.precision}|{target.latency.batch}".encode()
    )


def build_engine(model: Path, target: Target, device: CudaDevice) -> Built:
    """Parse, build and inspect.

    Raises EngineBuildError with the parser's or builder's own words, ConfigError on shapes that don't fit the model,
    PrecisionMismatchError where the engine's layers aren't of the types that the graph gives them.
    """
    import tensorrt as trt

    options = tensorrt_config(target)
    started = time.monotonic()
    logger, log = make_logger()
    trt.init_libnvinfer_plugins(logger, "")
    builder = trt.Builder(logger)
    # The flag's number differs between 10 and 11, where it is the only kind of network there is.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    external_files(model)  # raises where it would read what does not lie beside it
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)):
        raise EngineBuildError(
            f"TensorRT can't parse {model}:\n{_parser_errors(parser)}",
            "an operator that is missing may be there in a later TensorRT or at another onnx.opset",
        )
    config = builder.create_builder_config()
    _configure(config, options)
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    ranges = {tensor.name: shape_range(tensor.name, tuple(tensor.shape), target) for tensor in inputs}
    profile = {name: shapes for name, shapes in ranges.items() if shapes is not None}
    if profile:
        _add_profile(builder, config, profile)
    cache_file = _timing_cache_file(options, trt.__version__, device)
    cache = None if cache_file is None else _attach_timing_cache(config, cache_file, log)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise EngineBuildError(
            f"TensorRT {trt.__version__} can't build an engine of {model}:\n{_tail(log)}",
            "a larger tensorrt.workspace_mib or a lower tensorrt.optimization_level may help",
        )
    data = bytes(serialized)
    if cache is not None and cache_file is not None:
        _store(cache_file, bytes(cache.serialize()))
    layers_json, types = _inspect(data, model, target, logger, log)
    facts = EngineFacts(
        tensorrt=trt.__version__,
        gpu=device.name,
        compute_capability=device.capability,
        driver=device.driver,
        hardware=options.hardware,
        version_compatible=options.version_compatible,
        precision=target.precision,
        types=types.text,
        profile=profile,
        settings_sha256=settings_sha256(target),
        onnx_sha256=model_sha256(model),
        engine_sha256=sha256(data),
        build_seconds=time.monotonic() - started,
    )
    return Built(data, facts, layers_json)


def _configure(config: trt.IBuilderConfig, options: TensorRTConfig) -> None:
    import tensorrt as trt

    config.builder_optimization_level = options.optimization_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # without it the inspector shows names alone
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib * MIB)
    if options.aux_streams is not None:
        config.max_aux_streams = options.aux_streams
    if options.tf32:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default, and then float32 is not float32
    if options.refit:
        config.set_flag(trt.BuilderFlag.REFIT)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        # Else the engine carries host code, and a file that is loaded could run it.
        config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
    levels = {
        "exact": trt.HardwareCompatibilityLevel.NONE,
        "same_compute_capability": trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY,
        "ampere_plus": trt.HardwareCompatibilityLevel.AMPERE_PLUS,
    }
    config.hardware_compatibility_level = levels[options.hardware]


def shape_range(name: str, shape: tuple[int, ...], target: Target) -> ShapeRange | None:
    """The shapes of an input for the target, where -1 marks a free dimension; none where all are fixed.

    Raises ConfigError where a dimension beside the batch is free and the target doesn't bound it.
    """
    if all(size >= 0 for size in shape):
        return None
    options = tensorrt_config(target)
    if given := options.shapes.get(name):
        fits = len(given.opt) == len(shape) and all(
            size in (-1, low, high) for size, low, high in zip(shape, given.min, given.max, strict=True)
        )
        if not fits or any(
            size >= 0 and low != high for size, low, high in zip(shape, given.min, given.max, strict=True)
        ):
            raise ConfigError(
                f"tensorrt.shapes of {name} go from {given.min} to {given.max}, the model's input is {shape}",
                "change only dimensions that are free, which are -1",
            )
        return given
    if any(size < 0 for size in shape[1:]):
        raise ConfigError(
            f"input {name} has free dimensions {shape} beside the batch",
            f"bound them in the target: tensorrt.shapes.{name}: {{min: […], opt: […], max: […]}}",
        )
    batch, rest = target.latency.batch, shape[1:]
    return ShapeRange(min=(1, *rest), opt=(batch, *rest), max=(max(batch, options.max_batch), *rest))


def _add_profile(builder: trt.Builder, config: trt.IBuilderConfig, profile: Mapping[str, ShapeRange]) -> None:
    added = builder.create_optimization_profile()
    for name, shapes in profile.items():
        added.set_shape(name, shapes.min, shapes.opt, shapes.max)
    if config.add_optimization_profile(added) < 0:
        raise ConfigError(
            f"TensorRT refuses the shapes {dict(profile)}", "mend tensorrt.shapes of the target"
        )


def _parser_errors(parser: trt.OnnxParser) -> str:
    errors = (parser.get_error(index) for index in range(parser.num_errors))
    return "\n".join(f"  node {one.node_name()} ({one.node_operator()}): {one.desc()}" for one in errors)


def _tail(log: list[str]) -> str:
    lines = log[-LONGEST_LOG:] or ["it gave no reason"]
    return "\n".join(f"  {line}" for line in lines)


def _timing_cache_file(options: TensorRTConfig, version: str, device: CudaDevice) -> Path | None:
    if options.timing_cache is None:
        return None
    if options.timing_cache != AUTO:
        return Path(options.timing_cache).expanduser()
    from compactmtl.data.cache import user_cache

    gpu = "".join(letter if letter.isalnum() else "-" for letter in device.name)
    return user_cache() / SECTION / f"{version}-{gpu}.timing"


def _attach_timing_cache(config: trt.IBuilderConfig, file: Path, log: list[str]) -> trt.ITimingCache | None:
    """The file's cache or, where it has none that fits this GPU and version, an empty one."""
    stored = file.read_bytes() if file.exists() else b""
    cache = config.create_timing_cache(stored)
    if cache is None or not config.set_timing_cache(cache, False):
        log.append(f"warning: {file} is of another GPU or TensorRT: kernels are timed again")
        cache = config.create_timing_cache(b"")
        if cache is not None:
            config.set_timing_cache(cache, False)
    return cache


def _store(file: Path, data: bytes) -> None:
    """Replace a file at once: two builds may share it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        Path(name).replace(file)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


def _inspect(
    data: bytes, model: Path, target: Target, logger: trt.ILogger, log: list[str]
) -> tuple[str, TypesSeen]:
    engine = deserialize(data, target, logger, log, str(model))[1]
    layers_json = inspect_engine(engine)
    accept = tensorrt_config(target).unseen_types == "accept"
    types = check_types(
        compute_types(model), engine_layers(layers_json), target.precision, accept_unseen=accept
    )
    return layers_json, types


def inspect_engine(engine: trt.ICudaEngine) -> str:
    """Every layer of an engine as the inspector's JSON."""
    import tensorrt as trt

    return engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)


def deserialize(
    data: bytes, target: Target, logger: trt.ILogger, log: list[str], where: str, *, lean: bool = False
) -> tuple[tuple[trt.Runtime, ...], trt.ICudaEngine]:
    """Runtimes and the engine, which must not outlive them. Raises EngineBuildError with TensorRT's own words.

    `lean`: through the target's lean runtime, which runs an engine of an earlier version. Raises UntrustedError without
    the user's word for that library.
    """
    import tensorrt as trt

    host = trt.Runtime(logger)
    runtimes: tuple[trt.Runtime | None, ...] = (host,)
    if lean:
        lean_runtime = tensorrt_config(target).lean_runtime
        if lean_runtime is None:
            raise ConfigError(
                f"{where} is of another TensorRT version and carries no runtime",
                "give the lean runtime of the version that built it: tensorrt.lean_runtime",
            )
        file = trust.library(lean_runtime, "tensorrt.lean_runtime")
        runtimes = (*runtimes, host.load_runtime(str(file)))
    alive = tuple(runtime for runtime in runtimes if runtime is not None)
    engine = alive[-1].deserialize_cuda_engine(data) if len(alive) == len(runtimes) else None
    if engine is None:
        raise EngineBuildError(
            f"TensorRT {trt.__version__} can't load the engine of {where}:\n{_tail(log)}", "build it again"
        )
    return alive, engine
