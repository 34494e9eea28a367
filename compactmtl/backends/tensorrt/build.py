"""Build an engine from an ONNX file: one path for TensorRT 10.3 and later, 11, and TensorRT for RTX.

Precision is in the graph: all networks are strongly typed. What was read off which version: docs/tensorrt.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compactmtl.backends.driver import CudaDevice
from compactmtl.backends.model_file import model_sha256
from compactmtl.backends.tensorrt import timing_cache
from compactmtl.backends.tensorrt.api import Library, TensorRT, log_of
from compactmtl.backends.tensorrt.engine import EngineFacts, Hardware
from compactmtl.backends.tensorrt.faults import located, mend, quoted
from compactmtl.backends.tensorrt.network import NetworkLayer, check_network, network_layers
from compactmtl.backends.tensorrt.options import EngineConfig
from compactmtl.backends.tensorrt.parse import EngineBuildError, parse, read_graph
from compactmtl.backends.tensorrt.shapes import add_profile, network_profile
from compactmtl.backends.tensorrt.types import TypesSeen, check_types, compute_types, engine_layers
from compactmtl.backends.tensorrt.watch import attach, watching
from compactmtl.config import trust
from compactmtl.config.precision import Precision
from compactmtl.errors import ConfigError

if TYPE_CHECKING:
    import tensorrt as trt

MIB = 1 << 20


@dataclass(frozen=True)
class Job:
    """What one target asks of one library's builder."""

    library: Library
    section: str  # of the target, for messages
    options: EngineConfig
    precision: Precision
    batch: int  # for which kernels are chosen
    settings_sha256: str  # of every key that changes the engine
    configure: Callable[[TensorRT, trt.IBuilderConfig], None]  # beyond what both libraries have
    check: Callable[[Sequence[NetworkLayer], str], None] = lambda layers, model: None  # raises what can't be
    hardware: Hardware = "exact"
    version_compatible: bool = False
    compute: tuple[str, ...] = ()  # capabilities that it is built for; none: this machine's GPU
    accept_unseen: bool = False
    timing_cache: Path | None = None


@dataclass(frozen=True)
class Built:
    """A serialized engine, its facts, and what its inspector says as JSON: nothing where no GPU could load it."""

    data: bytes
    facts: EngineFacts
    layers_json: str | None


def build_engine(model: Path, job: Job, device: CudaDevice | None) -> Built:
    """Parse, hold the network's types against the graph, build and, on a device, inspect.

    Raises EngineBuildError with the parser's or builder's own words and the node, ConfigError on shapes that don't fit
    the model or what the device can't compute, PrecisionMismatchError where the network's or the engine's layers aren't
    of the types that the graph gives them, KeyboardInterrupt once the builder has stopped for it.
    """
    api, label = job.library.load(), job.library.label
    log = log_of(api)
    with log.listen() as said:
        api.init_libnvinfer_plugins(log.logger, "")
        builder = api.Builder(log.logger)
        network, parser = parse(api, label, builder, log.logger, said, model)
        layers = network_layers(network)
        parsed = check_network(compute_types(model), layers)
        job.check(layers, str(model))
        config = builder.create_builder_config()
        configure(api, config, job.options)
        job.configure(api, config)
        profile = network_profile(network, job.options, job.batch, job.section)
        add_profile(builder, config, profile, job.section)
        file = job.timing_cache
        cache = None if file is None else timing_cache.attach(config, file, said)
        with watching() as watch:
            monitor = attach(api, config, watch)
            serialized = builder.build_serialized_network(network, config)
        if serialized is None:
            text = quoted(said)
            raise EngineBuildError(
                f"{label} {api.__version__} can't build an engine of {model}:\n{text}{located(text, read_graph(model))}",
                mend(text, f"a larger {job.section}.workspace_mib may help"),
            )
        data = bytes(serialized)
        if cache is not None and file is not None:
            timing_cache.store(file, bytes(cache.serialize()))
        # In the order in which they need each other: the bindings don't keep a parser's network, or a monitor.
        del serialized, cache, config, parser, network, builder, monitor
        layers_json, types = (None, None) if device is None else _inspect(api, data, model, job, said)
    facts = EngineFacts(
        tensorrt=api.__version__,
        gpu="" if device is None else device.name,
        compute_capability="" if device is None else device.capability,
        driver="" if device is None else device.driver,
        compute=job.compute,
        hardware=job.hardware,
        version_compatible=job.version_compatible,
        precision=job.precision,
        parsed_types=parsed,
        types="not seen: no GPU loaded the engine" if types is None else types.text,
        profile=profile,
        settings_sha256=job.settings_sha256,
        onnx_sha256=model_sha256(model),
        engine_sha256=hashlib.sha256(data).hexdigest(),
        build_seconds=watch.seconds,
        build_peak_mib=watch.peak_mib,
    )
    return Built(data, facts, layers_json)


def configure(api: TensorRT, config: trt.IBuilderConfig, options: EngineConfig) -> None:
    """Set what both libraries have."""
    config.builder_optimization_level = options.optimization_level
    config.profiling_verbosity = api.ProfilingVerbosity.DETAILED  # without it the inspector shows names alone
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(api.MemoryPoolType.WORKSPACE, options.workspace_mib * MIB)
    if options.aux_streams is not None:
        config.max_aux_streams = options.aux_streams
    if options.tf32:
        config.set_flag(api.BuilderFlag.TF32)
    else:
        config.clear_flag(api.BuilderFlag.TF32)  # on by default, and then float32 is not float32
    if options.refit:
        config.set_flag(api.BuilderFlag.REFIT)


def _inspect(api: TensorRT, data: bytes, model: Path, job: Job, said: list[str]) -> tuple[str, TypesSeen]:
    engine = deserialize(api, data, said, str(model))[1]
    layers_json = inspect_engine(api, engine)
    types = check_types(
        compute_types(model), engine_layers(layers_json), job.precision, accept_unseen=job.accept_unseen
    )
    return layers_json, types


def inspect_engine(api: TensorRT, engine: trt.ICudaEngine) -> str:
    """Every layer of an engine as the inspector's JSON."""
    return engine.create_engine_inspector().get_engine_information(api.LayerInformationFormat.JSON)


def deserialize(
    api: TensorRT, data: bytes, said: list[str], where: str, *, lean: str | None = None
) -> tuple[tuple[trt.Runtime, ...], trt.ICudaEngine]:
    """Runtimes and the engine, which must not outlive them. Raises EngineBuildError with TensorRT's own words.

    `lean`: file of a lean runtime, which runs an engine of an earlier version. Raises UntrustedError without the user's
    word for that library.
    """
    host = api.Runtime(log_of(api).logger)
    runtimes: tuple[trt.Runtime | None, ...] = (host,)
    if lean is not None:
        runtimes = (*runtimes, host.load_runtime(str(trust.library(lean, "tensorrt.lean_runtime"))))
    alive = tuple(runtime for runtime in runtimes if runtime is not None)
    engine = alive[-1].deserialize_cuda_engine(data) if len(alive) == len(runtimes) else None
    if engine is None:
        raise EngineBuildError(
            f"TensorRT {api.__version__} can't load the engine of {where}:\n{quoted(said)}", "build it again"
        )
    return alive, engine


def hardware_level(api: TensorRT, name: str) -> trt.HardwareCompatibilityLevel:
    """A level by the target's word. Raises ConfigError where this version lacks it."""
    member = {
        "exact": "NONE",
        "same_compute_capability": "SAME_COMPUTE_CAPABILITY",
        "ampere_plus": "AMPERE_PLUS",
    }[name]
    level: trt.HardwareCompatibilityLevel | None = getattr(api.HardwareCompatibilityLevel, member, None)
    if level is None:
        raise ConfigError(
            f"tensorrt.hardware: TensorRT {api.__version__} does not know {name}, which came with 10.10",
            "use exact or ampere_plus, or a later TensorRT",
        )
    return level
