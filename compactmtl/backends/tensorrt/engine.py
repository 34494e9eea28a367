"""A serialized engine on disk beside a file of facts about it, so that one from elsewhere is refused unopened.

    model.onnx · model.engine · model.engine.json

Deserializing an engine of another TensorRT or GPU fails late and without a reason, or crashes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from compactmtl.backends.tensorrt.options import ShapeRange
from compactmtl.config.schema import Frozen
from compactmtl.errors import ArtifactError

_BUILD = "build it on this machine: compactmtl export RUN --target NAME"
Hardware = Literal["exact", "same_compute_capability", "ampere_plus"]


class EngineError(ArtifactError):
    """An engine that can't be used here."""


class EngineDamagedError(EngineError):
    """An engine that isn't the file that was built, or has no facts beside it."""


class EngineVersionError(EngineError):
    """An engine that another version of TensorRT built."""


class EngineGpuError(EngineError):
    """An engine that was built on another GPU."""


class EngineModelError(EngineError):
    """An engine that was built from another model, or with other settings."""


class EngineFacts(Frozen):
    """model.engine.json: what an engine was built with, on what and from what."""

    version: Literal[1, 2] = 2
    tensorrt: str
    gpu: str  # that it was built on; empty where there was none
    compute_capability: str
    driver: str
    compute: tuple[str, ...] = ()  # capabilities that it was built for ahead of time; none: that of `gpu`
    hardware: Hardware
    version_compatible: bool
    precision: str
    parsed_types: str = ""  # what the parsed network showed of the layers' types; not in version 1
    types: str  # what the inspector showed of them
    profile: dict[str, ShapeRange]
    settings_sha256: str
    onnx_sha256: str
    engine_sha256: str
    build_seconds: float
    build_peak_mib: float | None = None  # host memory of the build at most, where the system tells


def engine_path(model: Path) -> Path:
    """Where the engine of a model file lies."""
    return model.with_suffix(".engine")


def facts_path(engine: Path) -> Path:
    """Where the facts of an engine lie."""
    return engine.with_name(f"{engine.name}.json")


def sha256(data: bytes) -> str:
    """Hexadecimal digest."""
    return hashlib.sha256(data).hexdigest()


def read_engine(engine: Path) -> tuple[bytes, EngineFacts]:
    """The engine's bytes and facts. Raises EngineDamagedError."""
    facts_file = facts_path(engine)
    if not facts_file.is_file():
        raise EngineDamagedError(
            f"{engine} has no {facts_file.name} beside it: nobody knows what it is", _BUILD
        )
    try:
        facts = EngineFacts.model_validate_json(facts_file.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise EngineDamagedError(f"{facts_file} is damaged: {str(error).splitlines()[0]}", _BUILD) from error
    data = engine.read_bytes()
    if sha256(data) != facts.engine_sha256:
        raise EngineDamagedError(f"{engine} is not the engine that was built: its hash is off", _BUILD)
    return data, facts


def write_engine(engine: Path, data: bytes, facts: EngineFacts) -> tuple[Path, Path]:
    """Write an engine and its facts; the files that were written."""
    engine.write_bytes(data)
    facts_path(engine).write_text(facts.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return engine, facts_path(engine)


@dataclass(frozen=True)
class Here:
    """What an engine is about to run on."""

    tensorrt: str
    gpu: str
    compute_capability: str


def check_facts(
    facts: EngineFacts, where: Path, here: Here, *, onnx_sha256: str | None, settings_sha256: str
) -> None:
    """Raise EngineVersionError, EngineGpuError or EngineModelError where an engine can't or mustn't run here."""
    if facts.tensorrt != here.tensorrt and not (
        facts.version_compatible and _is_later(here.tensorrt, facts.tensorrt)
    ):
        may = ", and only later ones of its major may run it" if facts.version_compatible else ""
        raise EngineVersionError(
            f"{where} was built by TensorRT {facts.tensorrt}{may}; this is {here.tensorrt}", _BUILD
        )
    if not _runs_on(facts, here):
        raise EngineGpuError(
            f"{where} was built for {_built_for(facts)}; this is {here.gpu} ({here.compute_capability})",
            _BUILD,
        )
    if onnx_sha256 is not None and facts.onnx_sha256 != onnx_sha256:
        raise EngineModelError(f"{where} was built from another model file than the one beside it", _BUILD)
    if facts.settings_sha256 != settings_sha256:
        raise EngineModelError(f"{where} was built with other settings than the target's", _BUILD)


def _built_for(facts: EngineFacts) -> str:
    if facts.compute:
        return f"compute capability {', '.join(facts.compute)}"
    return f"{facts.gpu} (compute capability {facts.compute_capability}, hardware: {facts.hardware})"


def _runs_on(facts: EngineFacts, here: Here) -> bool:
    if facts.compute:
        return here.compute_capability in facts.compute
    if facts.hardware == "exact":
        return (facts.gpu, facts.compute_capability) == (here.gpu, here.compute_capability)
    if facts.hardware == "same_compute_capability":
        return facts.compute_capability == here.compute_capability
    return float(here.compute_capability) >= 8.0  # Ampere


def _is_later(version: str, built: str) -> bool:
    """Whether a version is of the same major as the builder's and not older."""
    ours, theirs = (
        tuple(int(part) for part in one.split(".")[:3] if part.isdigit()) for one in (version, built)
    )
    return ours[0] == theirs[0] and ours >= theirs
