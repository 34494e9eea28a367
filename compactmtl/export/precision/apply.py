"""The precision pass: an exported float32 file brought to its target's precision, before any backend sees it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import onnx

from compactmtl.artifacts.told import Progress
from compactmtl.backends import get_backend
from compactmtl.backends.model_file import model_files
from compactmtl.config.precision import HalfConfig
from compactmtl.config.target import Target
from compactmtl.errors import ArtifactError, ConfigError
from compactmtl.export.precision import int8
from compactmtl.export.precision.files import load_inferred, save
from compactmtl.export.precision.half import lower
from compactmtl.export.precision.overflow import overflow_prone
from compactmtl.export.precision.ranges import Feed, calibrate, largest_values
from compactmtl.export.precision.record import KeptNode, PrecisionRecord
from compactmtl.export.precision.search import find_float_layers, layer_errors, rank_layers
from compactmtl.verify.result import GateResult

Check = Callable[[Path], Sequence[GateResult]]  # a candidate file to the accuracy gates that it fails


def apply_precision(
    path: Path,
    target: Target,
    feeds: Sequence[Feed] = (),
    *,
    check: Check | None = None,
    progress: Progress = lambda line: None,
) -> PrecisionRecord | None:
    """Rewrite the float32 ONNX file at `path` in the target's precision; None where its backend takes the file as it is.

    Args:
        path: the file, with its weights beside it where they don't fit in; overwritten.
        target: precision and its options.
        feeds: calibration batches by input name, for fp16 and int8.
        check: int8 only: the accuracy gates that a candidate fails. With it, layers are left in float until none
            fails (see `find_float_layers`); without it every layer is quantized.

    The result holds ONNX's checker. Raises ConfigError where an option names a node or operator that the graph
    lacks, ArtifactError where calibration images are missing or the float32 model overflows by itself.
    """
    backend = get_backend(target.backend)
    if objection := backend.objection(target):
        raise ConfigError(objection, "change that key of the target, or choose another backend")
    graph_pass = backend.precisions[target.precision]
    if graph_pass == "none":
        return None
    if target.precision != "bf16" and not feeds:
        raise ArtifactError(
            f"{target.precision} is calibrated on training images, none were given", "give the run's data set"
        )
    progress(f"bringing the graph to {target.precision}")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".float.") as folder:
        source = Path(folder) / path.name
        for file in model_files(path):
            shutil.copy2(file, Path(folder) / file.name)
        if graph_pass == "qdq":
            record = _int8(source, path, target, feeds, check, progress)
        else:
            record = _half(source, path, target, feeds)
    onnx.checker.check_model(str(path), full_check=True)
    return record


def _half(source: Path, path: Path, target: Target, feeds: Sequence[Feed]) -> PrecisionRecord:
    model = load_inferred(source)
    config: HalfConfig = target.fp16 if target.precision == "fp16" else target.bf16
    reasons: dict[str, str] = {}
    samples = 0
    if target.precision == "fp16":
        feeds = _first(feeds, target.fp16.samples)
        samples = _samples(feeds)
        reasons = overflow_prone(model, largest_values(source, feeds), target.fp16)
    known = {node.name: node.op_type for node in model.graph.node}
    _check_names(f"{target.precision}.keep_nodes", config.keep_nodes, known)
    _check_names(f"{target.precision}.keep_ops", config.keep_ops, set(known.values()))
    reasons |= {
        name: "asked for"
        for name, operator in known.items()
        if name in config.keep_nodes or operator in config.keep_ops
    }
    backend = get_backend(target.backend)
    unknown = backend.float_ops.get(target.precision, frozenset())
    for name, operator in known.items():
        if operator in unknown:
            reasons.setdefault(name, f"{backend.name} takes {operator} in no {target.precision}")
    lowered = lower(model, target.precision, reasons)
    save(model, path)
    return PrecisionRecord(
        precision=target.precision, lowered=len(lowered), kept=_kept(reasons, known), samples=samples
    )


def _int8(
    source: Path, path: Path, target: Target, feeds: Sequence[Feed], check: Check | None, progress: Progress
) -> PrecisionRecord:
    config = target.int8
    if config.reduce_range is None:
        # A file must mean the same on the CPU that it was verified on and on the one that it is deployed to.
        config = config.model_copy(update={"reduce_range": get_backend(target.backend).on_cpu(target)})
    model = load_inferred(source)
    known = {node.name: node.op_type for node in model.graph.node}
    _check_names("int8.exclude", config.exclude, {*known, *known.values()})
    feeds = _first(feeds, config.samples)
    ranges = calibrate(source, feeds, config, int8.operators(config))
    layers = int8.quantizable(model, config)
    if not layers:
        raise ConfigError(
            f"int8: nothing is left to quantize of {len(known)} nodes", "exclude fewer nodes, or use fp32"
        )
    reasons = {
        name: "asked for" for name, operator in known.items() if {name, operator} & set(config.exclude)
    }

    def attempt(in_float: tuple[str, ...]) -> Sequence[GateResult]:
        progress(f"int8 with {len(in_float)} of {len(layers)} layers in float")
        int8.quantize(model, path, config, ranges, leave=in_float)
        return check(path) if check is not None else ()

    def rank(failed: Sequence[GateResult]) -> Sequence[str]:
        progress(f"measuring how sensitive {len(layers)} layers are to int8")
        return rank_layers(layer_errors(source, model, config, ranges, feeds[0], tuple(layers)), failed)

    if check is None or config.search == 0:
        int8.quantize(model, path, config, ranges)
        search = None
    else:
        most = int(config.max_float * len(layers))
        search = find_float_layers(rank, attempt, evaluations=config.search, most=most)
        int8.quantize(model, path, config, ranges, leave=search.names)
        reasons |= dict.fromkeys(search.names, "its int8 form costs accuracy")
    return PrecisionRecord(
        precision="int8",
        lowered=len(int8.quantized_layers(onnx.load(path, load_external_data=False))),
        kept=_kept(reasons, known),
        samples=_samples(feeds),
        search=() if search is None else search.steps,
        held=None if search is None else search.held,
        reduced_range=bool(config.reduce_range),
    )


def _check_names(key: str, names: Collection[str], known: Collection[str]) -> None:
    if unknown := sorted(set(names) - set(known)):
        raise ConfigError(
            f"{key} names {', '.join(unknown)}, which the graph doesn't have",
            "look at the exported float32 file for its nodes and operators",
        )


def _first(feeds: Sequence[Feed], samples: int) -> list[Feed]:
    """As many batches as hold `samples` images."""
    taken: list[Feed] = []
    for feed in feeds:
        if _samples(taken) >= samples:
            break
        taken.append(feed)
    return taken


def _samples(feeds: Sequence[Feed]) -> int:
    return sum(len(next(iter(feed.values()))) for feed in feeds)


def _kept(reasons: dict[str, str], known: dict[str, str]) -> tuple[KeptNode, ...]:
    return tuple(
        KeptNode(name=name, operator=known[name], reason=reasons[name]) for name in known if name in reasons
    )
