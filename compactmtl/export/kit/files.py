"""What a kit's manifest and its results hold, as the machine that wrote the kit reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from compactmtl.artifacts.files import parse_json, sha256_file, write_bytes
from compactmtl.artifacts.hashes import check_files, read_hashes, sha256, write_hashes
from compactmtl.artifacts.layout import DEVICES, HASHES
from compactmtl.config.precision import Precision
from compactmtl.config.schema import Frozen
from compactmtl.errors import ArtifactError
from compactmtl.export.kit.on_device import digest
from compactmtl.export.record import FileName, Sha256
from compactmtl.verify.result import (
    AccuracyResult,
    GateResult,
    LatencyResult,
    ParityResult,
    PhaseTimes,
    Record,
    TaskMetrics,
)

KIT_PREFIX = "kit-"  # of a manifest in a bundle, before the first digits of its hash
_AGAIN = "export the kit again: compactmtl export RUN --target NAME --kit"
Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Digest:
    """SHA-256 of what a file is given, batch by batch; of several inputs over the digests of each."""

    def __init__(self) -> None:
        self._inputs: list[hashlib._Hash] = []

    def update(self, fed: Sequence[NDArray[Any]]) -> None:
        """One batch of every input."""
        self._inputs = self._inputs or [hashlib.sha256() for _ in fed]
        for one, array in zip(self._inputs, fed, strict=True):
            one.update(np.ascontiguousarray(array).tobytes())

    @property
    def text(self) -> str:
        """In hexadecimal digits."""
        texts = [one.hexdigest() for one in self._inputs]
        return texts[0] if len(texts) == 1 else hashlib.sha256("".join(texts).encode()).hexdigest()


class KitModel(Frozen):
    """One model of a kit."""

    file: str  # relative to the kit
    precision: Precision


class KitImages(Record):
    """The packed part of the val split: its first images, and how the torch models do on them."""

    count: int = Field(ge=1)
    batch: int = Field(ge=1)  # images that the model is given at once
    sha256: Sha256  # of the inputs' bytes, one after the other
    torch: TaskMetrics
    baseline: TaskMetrics | None = None


class Plan(Frozen):
    """How latency is measured."""

    warmup: int
    repeats: int
    settle: int


class Manifest(Record):
    """kit.json: what a kit holds, and of which bundle it is."""

    version: Literal[1] = 1
    run: str
    target_name: str
    bundle_sha256: Sha256
    subject: str  # the bundle's model, among `models`
    reference: str  # the model that speedups refer to
    models: dict[str, KitModel]
    runtime: dict[str, Any]  # settings of the backend's code in kit.py
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tolerances: dict[str, float | None]  # for what the device prints; none: not bounded
    cases: int
    latency: Plan
    images: KitImages | None
    files: dict[str, Sha256]  # of every file of the kit that its results depend on
    created: str


class ParityFound(BaseModel):
    """Differences of one output, as `Tally` gives them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    shape: tuple[int, ...]
    max_abs: float = Field(ge=0)
    max_relative: float = Field(ge=0)
    scale: float = Field(gt=0)
    cosine: float
    variation: float | None


class ParityFacts(Frozen):
    """Parity as the device found it."""

    samples: int
    outputs: dict[str, ParityFound]
    not_finite: dict[str, int]


class LatencyFacts(Frozen):
    """Latency as the device found it."""

    batch: int = Field(ge=1)
    warmup: int
    settle: int
    samples_ms: dict[str, tuple[Milliseconds, ...]]
    process_ms: dict[str, tuple[float, ...]]
    phases_ms: dict[str, Annotated[tuple[tuple[float, float, float], ...], Field(min_length=1)]]
    load_average: float | None


class ModelFacts(BaseModel):
    """How one model really ran, by the runtime's own account; beyond these what its backend reads."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    provider: str
    threads: int | None = None
    layers: dict[str, int] | None = None
    build_seconds: float | None = None


class MachineFacts(BaseModel):
    """What the device says of itself."""

    model_config = ConfigDict(frozen=True, extra="allow")

    processors: int | None = None


class Answers(Frozen):
    """The file with the outputs for the packed images."""

    file: FileName
    sha256: Sha256
    count: int


class Results(Frozen):
    """results.json, as kit.py writes it on a device."""

    version: Literal[1]
    kit: Sha256  # of the kit's manifest
    files: dict[str, str]
    name: str = Field(min_length=1)
    device: str
    machine: MachineFacts
    versions: dict[str, str] = Field(min_length=1)  # the runtime's first
    models: dict[str, ModelFacts]
    parity: ParityFacts
    latency: LatencyFacts
    states: tuple[dict[str, Any], ...]
    held_back: tuple[str, ...] | None
    images: Answers | None
    created: str
    digest: Sha256


class DeviceRecord(Record):
    """devices/<device>.json of a bundle: what was measured there, and the target's gates."""

    version: Literal[1] = 1
    name: str
    device: str
    target: str
    kit: Sha256
    results: Sha256  # the digest of the results that this was made from
    bundle_sha256: Sha256
    parity: ParityResult
    accuracy: AccuracyResult | None
    latency: LatencyResult
    phases: dict[str, PhaseTimes]
    build_seconds: dict[str, float]
    megabytes: float
    gates: tuple[GateResult, ...]
    passed: bool
    not_run: dict[str, str]  # what was not measured, and why
    held_back: tuple[str, ...] | None  # why the device ran below its speed; none: it doesn't tell
    machine: MachineFacts
    states: tuple[dict[str, Any], ...]
    versions: dict[str, str]
    measured: str
    collected: str


def read_results(path: Path) -> Results:
    """A file that kit.py wrote. Raises ArtifactError where it is none, is damaged or was edited."""
    again = "take the file from the device again, or run kit.py there again"
    try:
        content: Any = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: there is no such file", "name the file that kit.py wrote") from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} can't be read: {error}", again) from error
    if not isinstance(content, dict) or "digest" not in content or "kit" not in content:
        raise ArtifactError(f"{path} is no results file of a device kit", "name the file that kit.py wrote")
    try:
        current = digest(content)
    except ValueError:  # a value that is no number
        current = ""
    if current != content["digest"]:
        raise ArtifactError(f"{path} was changed after kit.py wrote it: its digest is off", again)
    try:
        return Results.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{path}: {where}: {first['msg']}", again) from error


def keep_manifest(bundle: Path, manifest: bytes) -> None:
    """Keep a kit's manifest in its bundle: results are only taken from kits that the bundle knows."""
    _keep(bundle, _manifest_name(sha256(manifest)), manifest)


def find_manifest(exports: Path, kit: str) -> tuple[Path, Manifest] | None:
    """The bundle below `exports` that the kit of this hash is of, and the kit's manifest. None where none is."""
    for folder in sorted(exports.glob(f"*/{DEVICES}")):
        path = folder / _manifest_name(kit)
        if path.is_file() and sha256_file(path) == kit:
            return folder.parent, _read(Manifest, path, _AGAIN)
    return None


def _manifest_name(kit: str) -> str:
    return f"{KIT_PREFIX}{kit[:16]}.json"


def keep_record(bundle: Path, record: DeviceRecord) -> bool:
    """Write what a device found into its bundle; whether a former one of that device was replaced."""
    name = f"{device_slug(record.name)}.json"
    there = (bundle / DEVICES / name).exists()
    _keep(bundle, name, (record.model_dump_json(indent=2) + "\n").encode())
    return there


def read_records(bundle: Path) -> tuple[DeviceRecord, ...]:
    """What devices found of a bundle, by name. Raises ArtifactError for a file that is damaged or was exchanged."""
    paths = sorted((bundle / DEVICES).glob("*.json"))
    hashes = read_hashes(bundle / DEVICES, _AGAIN)
    listed = set() if hashes is None else set(hashes.files)
    return tuple(
        _read(DeviceRecord, path, "collect the device's results again")
        for path in paths
        if path.name in listed and not path.name.startswith(KIT_PREFIX)
    )


def device_slug(name: str) -> str:
    """A device's name as a file's."""
    slug = "-".join("".join(letter if letter.isalnum() else " " for letter in name.lower()).split())
    plain = slug.encode("ascii", "ignore").decode().strip("-")
    # what would be taken for a manifest, or for the hashes
    reserved = not plain or plain.startswith(KIT_PREFIX) or f"{plain}.json" == HASHES
    return f"device-{plain}".strip("-") if reserved else plain


_Kind = TypeVar("_Kind", Manifest, DeviceRecord)


def _read(kind: type[_Kind], path: Path, mend: str) -> _Kind:
    """A file of the folder as a typed record. Raises ArtifactError."""
    try:
        return kind.model_validate_json(_checked(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{path}: {where}: {first['msg']}", mend) from error


def _checked(path: Path) -> bytes:
    hashes = read_hashes(path.parent, _AGAIN)
    if hashes is None:
        raise ArtifactError(f"{path.parent} has lost its hashes", _AGAIN)
    check_files(path.parent, hashes, _AGAIN, [path.name])
    return path.read_bytes()


def _keep(bundle: Path, name: str, data: bytes) -> None:
    folder = bundle / DEVICES
    folder.mkdir(exist_ok=True)
    hashes = read_hashes(folder, _AGAIN)
    others = {} if hashes is None else {key: value for key, value in hashes.files.items() if key != name}
    if hashes is not None:
        check_files(
            folder, hashes, _AGAIN, others
        )  # else a file that was exchanged would get a hash of its own
    write_bytes(folder / name, data)
    write_hashes(folder, {**others, name: sha256(data)})
