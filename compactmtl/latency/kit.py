"""A latency table from a machine that has the runtime alone: a kit of cut networks out, a fitted table of its times back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from compactmtl.artifacts.files import parse_json, sha256_file
from compactmtl.artifacts.hashes import sha256
from compactmtl.artifacts.layout import MODEL_FILE
from compactmtl.artifacts.told import now
from compactmtl.backends import LayerTime, get_backend
from compactmtl.backends.precision import PrecisionError
from compactmtl.config.target import Target
from compactmtl.errors import ArtifactError, ConfigError, MachineError, command
from compactmtl.export.kit import table_on_device
from compactmtl.export.kit.files import Milliseconds, ModelFacts
from compactmtl.export.kit.on_device import INPUTS, MANIFEST, SCRIPT, digest
from compactmtl.export.kit.script import script
from compactmtl.export.kit.table_on_device import TABLE
from compactmtl.export.kit.write import WrittenKit, check_place, kit_folder, save_arrays
from compactmtl.export.onnx import export_onnx, model_tensors
from compactmtl.export.precision.apply import apply_precision
from compactmtl.graph import ChannelGraph
from compactmtl.latency.cuts import Cutter
from compactmtl.latency.fit import Point
from compactmtl.latency.measure import (
    BUSY,
    BUSY_CUTS,
    Settings,
    fitted,
    layer_signatures,
    layer_weights,
    network_facts,
    points_of,
)
from compactmtl.latency.memory import total_weights
from compactmtl.latency.observe import (
    ROUNDS,
    SECONDS,
    WARMUP,
    Observed,
    attribute,
    file_owners,
    input_names,
    noise_feeds,
    widths_of,
)
from compactmtl.sparsity.latency import LatencyTable
from compactmtl.verify.speed import variation

WHOLE = "0"
_AGAIN = "copy the kit to the device again and run kit.py there"
_Widths = dict[str, tuple[int, int | None]]


class _Network(BaseModel):
    """One network of a kit: its file, and the widths of its layers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    widths: _Widths
    owners: dict[str, str] = {}  # layers of steps that are named after none; empty as well in earlier kits


class TablePlan(BaseModel):
    """How long a network is timed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seconds: float = SECONDS
    least: int = ROUNDS[0]  # rounds
    most: int = ROUNDS[1]
    warmup: int = WARMUP


class TableManifest(BaseModel):
    """kit.json of a table kit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    kind: Literal["table"] = "table"
    facts: dict[str, Any]  # of the network and target, as a table has them
    target: Target
    align: int
    full: _Widths
    signatures: dict[str, str]  # layers of one signature share their points
    weights: dict[str, float] | None = (
        None  # of each layer at full width; none: of a kit before memory was told apart
    )
    whole: str
    networks: dict[str, _Network]
    runtime: dict[str, Any]  # settings of the backend's code in kit.py
    inputs: tuple[str, ...]
    latency: TablePlan
    files: dict[str, str]
    created: str


class _Timed(BaseModel):
    """What a device found of one network."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    samples_ms: tuple[Milliseconds, ...] = Field(min_length=1)
    steps: tuple[tuple[str, Annotated[float, Field(ge=0)]], ...]
    facts: ModelFacts


class TableResults(BaseModel):
    """results.json of a table kit, as kit.py writes it on a device."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1]
    kind: Literal["table"]
    kit: str
    manifest: str  # the kit's, word by word
    files: dict[str, str]
    name: str
    device: str
    versions: dict[str, str] = Field(min_length=1)  # the runtime's first
    networks: dict[str, _Timed]
    states: tuple[dict[str, Any], ...]
    held_back: tuple[str, ...] | None
    created: str
    digest: str


def write_table_kit(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    target: Target,
    name: str,
    path: Path,
    *,
    align: int = 16,
    settings: Settings | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> WrittenKit:
    """Write a kit that times a plain model and random cuts of it on a device, a folder or a .zip; arguments as `latency_table`.

    Nothing is timed here, and the target need not run here. Raises ConfigError where the backend has no kit, the
    network no layers that could become narrower, or `path` holds something else.
    """
    settings = settings or Settings()
    backend = get_backend(target.backend)
    graph = ChannelGraph.trace(model, inputs)
    full = {
        key: (int(o), None if i is None else int(i))
        for key, (o, i) in graph.widths(np.ones(graph.classes, bool)).items()
    }
    if not full:
        raise ConfigError("the network has no convolution or linear layer", "nothing can be timed by layer")
    check_place(path)
    names = input_names(inputs)
    cutter = Cutter(model, inputs, align)
    plans = cutter.plan(settings.cuts, settings.seed, alike=settings.alike)
    with kit_folder(path) as folder:
        networks: dict[str, _Network] = {}
        signatures: dict[str, str] = {}
        for number in range(len(plans) + 1):
            progress(f"writing network {number + 1} of {len(plans) + 1}")
            cut = model if number == 0 else cutter.cut(plans[number - 1])
            file = folder / "networks" / str(number) / MODEL_FILE
            file.parent.mkdir(parents=True)
            export_onnx(cut, inputs, file, input_names=names, opset=target.onnx.opset)
            apply_precision(file, target, noise_feeds(names, inputs))
            if number == 0:
                signatures = layer_signatures(model, inputs, full, file)
            networks[str(number)] = _Network(
                file=file.relative_to(folder).as_posix(),
                widths=dict(widths_of(cut, full)),
                owners=file_owners(file, list(full)),
            )
        shapes, _ = model_tensors(folder / networks[WHOLE].file)
        device = backend.device_kit(target, shapes)
        if device is None:
            raise ConfigError(
                f"backend {backend.name} has no device kit", "choose a target of another backend"
            )
        save_arrays(folder / INPUTS, {key: one.numpy() for key, one in zip(names, inputs, strict=True)})
        (folder / SCRIPT).write_text(
            script(device.runtime, device.install, table_on_device), encoding="utf-8"
        )
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        manifest = TableManifest(
            facts={"target": name, **network_facts(model, inputs, target)},
            target=backend.portable(target),
            align=align,
            full=full,
            signatures=signatures,
            weights=layer_weights(model, full),
            whole=WHOLE,
            networks=networks,
            runtime=dict(device.settings),
            inputs=tuple(names),
            latency=TablePlan(),
            files={file.relative_to(folder).as_posix(): sha256_file(file) for file in files},
            created=now(),
        )
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
        megabytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
    return WrittenKit(path, megabytes, 0, device.install)


def table_from_results(path: Path) -> LatencyTable:
    """The table of what a table kit has found on a device.

    Raises ArtifactError where the results were changed, are of files that are not the kit's, or lack a network;
    PrecisionError where the device ran another precision; MachineError where it was too busy to measure on.
    """
    results, manifest = _read(path)
    for name, expected in manifest.files.items():
        if results.files.get(name) != expected:
            raise ArtifactError(
                f"{path}: {name} on the device is another file than the kit was written with", _AGAIN
            )
    if set(results.networks) != set(manifest.networks):
        raise ArtifactError(f"{path} lacks networks of the kit", _AGAIN)
    _check_precision(path, results, manifest)
    observed: list[Observed] = []
    points: dict[str, list[Point]] = {}
    weights = manifest.weights or dict.fromkeys(manifest.full, 0.0)
    for name in (manifest.whole, *(one for one in manifest.networks if one != manifest.whole)):
        timed = results.networks[name]
        wall = float(np.median(timed.samples_ms))
        steps = [LayerTime(name=step, operator="", milliseconds=ms) for step, ms in timed.steps]
        layers, before = attribute(steps, list(manifest.full), wall, manifest.networks[name].owners)
        one = Observed(
            dict(manifest.networks[name].widths), layers, before, wall, variation(timed.samples_ms)
        )
        observed.append(one)
        if one.variation <= BUSY:
            network = total_weights(one.widths, manifest.full, weights)
            for signature, point in points_of(one, manifest.signatures, network):
                points.setdefault(signature, []).append(point)
    busy = sum(one.variation > BUSY for one in observed)
    if busy > BUSY_CUTS * len(observed):
        raise MachineError(
            f"{results.name} was too busy: of {busy} of {len(observed)} networks the quartiles of the runs lie more than"
            f" {BUSY:.0%} of their median apart",
            "stop other programs there, fix its clocks, and run kit.py again",
        )
    if not points:
        raise ArtifactError(
            f"{path}: the runtime's profile names none of the network's layers",
            "choose another target; with a module of your own, check that its layers are modules",
        )
    facts = {
        **manifest.facts,
        "device": results.device,
        "runtime": next(iter(results.versions.values())),
        "kit": results.kit,
    }
    by_layer = {layer: points.get(manifest.signatures[layer], []) for layer in manifest.full}
    return fitted(facts, observed, by_layer, manifest.full, weights, manifest.align)


def _read(path: Path) -> tuple[TableResults, TableManifest]:
    """Results and the manifest in them. Raises ArtifactError where the file is none, or was edited."""
    try:
        content: Any = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: there is no such file", "name the file that kit.py wrote") from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} can't be read: {error}", _AGAIN) from error
    if not isinstance(content, dict) or content.get("kind") != TABLE:
        kit = command("collect", "RUN", path)
        raise ArtifactError(f"{path} is no results file of a table kit", f"of another device kit: {kit}")
    try:
        current = digest(content)
    except ValueError:  # a value that is no number
        current = ""
    if current != content.get("digest"):
        raise ArtifactError(f"{path} was changed after kit.py wrote it: its digest is off", _AGAIN)
    try:
        results = TableResults.model_validate_json(json.dumps(content))
        if sha256(results.manifest.encode()) != results.kit:
            raise ArtifactError(f"{path}: the kit's manifest in it was changed", _AGAIN)
        return results, TableManifest.model_validate_json(results.manifest)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{path}: {where}: {first['msg']}", _AGAIN) from error


def _check_precision(path: Path, results: TableResults, manifest: TableManifest) -> None:
    """Raise PrecisionError where the device ran the whole network in another precision than the target's."""
    backend = get_backend(manifest.target.backend)
    facts = results.networks[manifest.whole].facts
    try:
        backend.check_device(facts.model_dump(), path, manifest.target)
    except PrecisionError as error:
        raise PrecisionError(f"{path}: {error.message}", error.hint) from error
