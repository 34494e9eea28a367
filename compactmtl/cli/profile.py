"""`compactmtl profile`: compare runs, bundles and model files by latency, throughput, memory, layers and size."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING

from compactmtl.artifacts.layout import BUNDLE_FILE, MODEL_FILE, PROFILE
from compactmtl.artifacts.told import tell
from compactmtl.cli.parser import MOST, add_trust

if TYPE_CHECKING:
    from contextlib import ExitStack
    from pathlib import Path

    from compactmtl.config.target import Target
    from compactmtl.runs import Run
    from compactmtl.verify.profile import Subject
    from compactmtl.verify.result import Profile

HELP = "compare runs, bundles and model files by latency, throughput, memory, layers and size"
EXAMPLE = """\
compactmtl profile runs/scenes-dense runs/scenes-compact
compactmtl profile runs/scenes-compact/export/onnxruntime-cpu other.onnx --batches 1 8 --out profile
compactmtl profile dense.onnx small.onnx --shape image=1x3x224x224
compactmtl profile runs/scenes-dense runs/scenes-compact --explain
compactmtl profile runs/scenes-compact --update --baseline runs/scenes-dense"""
MOST_LAYERS = 8
DEFAULT_TARGET = "onnxruntime-cpu"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "subjects",
        metavar="RUN_BUNDLE_OR_FILE",
        nargs="+",
        help="models to compare; the first is the reference",
    )
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        help="where the runs' data is on this machine, such as data.root=/data; int8 is calibrated on it",
    )
    parser.add_argument(
        "--target",
        metavar="NAME",
        help=f"target of runs and files (default: {DEFAULT_TARGET}); a bundle has its own",
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=1,
        help="batch size of the latency, where the model's is free (default: 1)",
    )
    parser.add_argument(
        "--batches",
        type=int,
        nargs="+",
        default=[1, 4, 8],
        help="batch sizes of the throughput (default: 1 4 8)",
    )
    parser.add_argument(
        "--settle",
        type=int,
        default=3,
        help="unmeasured runs of a model before each measured one (default: 3)",
    )
    parser.add_argument("--warmup", type=int, default=10, help="unmeasured rounds at the start (default: 10)")
    parser.add_argument("--repeats", type=int, default=100, help="measured rounds (default: 100)")
    parser.add_argument(
        "--shape",
        metavar="NAME=1x3x224x224",
        action="append",
        default=[],
        help="shape of an input that has free dimensions",
    )
    parser.add_argument(
        "--explain",
        action="store_true",
        help="say why the others are not as much faster than the first as they have fewer MACs, in milliseconds",
    )
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument("--no-layers", action="store_true", help="do not measure single layers")
    parser.add_argument(
        "--out",
        metavar="DIR",
        help=f"write {PROFILE}, and all times in the format of `trtexec --exportTimes`",
    )
    parser.add_argument(
        "--update",
        action="store_true",
        help="time the bundles of one exported run again, without exporting: the latency in its verification and the gates"
        " on it are new (--target: that bundle alone)",
    )
    parser.add_argument(
        "--baseline", metavar="RUN", help="with --update: the dense run that it was exported with"
    )
    add_trust(parser)


def run(args: argparse.Namespace) -> int:
    """Measure and print; with --out write the figures too."""
    from contextlib import ExitStack
    from pathlib import Path

    from compactmtl.backends import load_target
    from compactmtl.cli.disk import check_writable
    from compactmtl.cli.explaining import check_explain, explained, explanations
    from compactmtl.errors import ConfigError
    from compactmtl.verify.profile import Options, profile

    if args.update:
        from compactmtl.cli.remeasuring import update

        return update(args)
    if args.baseline:
        raise ConfigError("--baseline is for --update", "name the dense run first: profile DENSE RUN")
    if args.batch < 1 or min(args.batches) < 1:
        raise ConfigError("a batch needs at least one sample", "give --batch and --batches of 1 or more")
    if args.repeats < 1 or min(args.warmup, args.settle) < 0:
        raise ConfigError(
            "at least one round must be measured, and counts cannot be negative",
            "give --repeats of 1 or more, --warmup and --settle of 0 or more",
        )
    check_explain(args.explain, len(args.subjects), layers=not args.no_layers)
    if args.out:
        check_writable(Path(args.out))
    target = load_target(args.target or DEFAULT_TARGET)
    shapes = dict(shape_of(text) for text in args.shape)
    options = Options(
        batch=args.batch,
        batches=tuple(args.batches),
        warmup=args.warmup,
        settle=args.settle,
        repeats=args.repeats,
        layer_repeats=args.repeats if args.explain else Options.layer_repeats,
        layers=not args.no_layers,
        memory=not args.no_memory,
    )
    with ExitStack() as stack:
        names = unique_names(args.subjects)
        subjects = {
            name: _open(Path(path), target, args.batch, shapes, stack, args)
            for name, path in zip(names, args.subjects, strict=True)
        }
        _check_used(args, list(subjects.values()))
        result = profile(subjects, options, progress=tell)
        if args.explain:
            result = explained(result)
    print("\n".join((*summary(result), *explanations(result))))
    if args.out:
        _write(result, Path(args.out))
        print(f"profile: {Path(args.out) / PROFILE}")
    return 0


def unique_names(paths: list[str]) -> list[str]:
    """A short name for each path: its end, with as many folders as tell them apart."""
    from pathlib import Path

    from compactmtl.errors import ConfigError

    parts = [Path(path).resolve().parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ConfigError(
        "a model is named twice",
        "name each model once; compare with a copy to see how much a measurement varies",
    )


def shape_of(text: str) -> tuple[str, tuple[int, ...]]:
    """NAME=1x3x224x224 as name and shape. Raises ConfigError."""
    from compactmtl.errors import ConfigError

    name, _, sizes = text.rpartition("=")
    try:
        shape = tuple(int(size) for size in sizes.split("x"))
    except ValueError:
        shape = (0,)
    if min(shape) < 1:
        raise ConfigError(
            f"--shape {text}: expected NAME=1x3x224x224", "give integers of 1 or more, separated by x"
        )
    if prod(shape) >= MOST:
        raise ConfigError(f"--shape {text}: no machine holds so many numbers", "give smaller sizes")
    return name, shape


def _check_used(args: argparse.Namespace, subjects: list[Subject]) -> None:
    """Raise ConfigError where --shape names no input of any model; say where an option changes nothing."""
    from pathlib import Path

    from compactmtl.errors import ConfigError

    inputs = {name for one in subjects for name in one.runner.input_names}
    for text in args.shape:
        if (name := text.rpartition("=")[0]) not in inputs:
            raise ConfigError(
                f"--shape {text}: no model has an input {name!r}",
                f"the inputs are {', '.join(sorted(inputs))}",
            )
    bundles = [(Path(path) / BUNDLE_FILE).is_file() for path in args.subjects]
    runs = [Path(path).is_dir() and not bundle for path, bundle in zip(args.subjects, bundles, strict=True)]
    if args.target is not None and all(bundles):
        print(f"note: --target {args.target} has no effect: a bundle runs on its own target", file=sys.stderr)
    if args.overrides and not any(runs):
        print(f"note: {' '.join(args.overrides)} has no effect: no run is among the models", file=sys.stderr)


def _converts(path: Path, target: Target, name: str) -> bool:
    """Whether a float32 file has to be brought to the target's precision.

    Raises ConfigError where it is of another precision than the target and not in float32.
    """
    from compactmtl.backends import get_backend
    from compactmtl.backends.precision import file_precision
    from compactmtl.errors import ConfigError

    if path.suffix.lower() != ".onnx" or not path.is_file():
        return False  # the backend says what it thinks of it
    try:
        precision = file_precision(path)
    except (
        Exception
    ):  # protobuf's own errors: the backend opens the file too, and names what is wrong with it
        return False
    if precision == target.precision or get_backend(target.backend).precisions[target.precision] == "none":
        return False
    if precision != "fp32":
        raise ConfigError(
            f"{path} is a model in {precision}, and target {name} asks for {target.precision}: only a file in fp32 is "
            "brought to another precision",
            f"give a target of precision {precision}, or the float32 file that it was made from",
        )
    return True


def _lowered(
    path: Path, target: Target, batch: int, shapes: dict[str, tuple[int, ...]], folder: Path
) -> tuple[Path, str]:
    """The file in the target's precision, calibrated on made-up inputs, and what to know of it."""
    from compactmtl.errors import command
    from compactmtl.export.module_inputs import feed_of
    from compactmtl.export.onnx_file import OnnxModel, write_file

    model = OnnxModel(path)
    own = {name: shape for name, shape in shapes.items() if name in model.input_names}
    feed = feed_of(model.noise(batch, own), model.input_names)
    write_file(model, folder / MODEL_FILE, target, [feed])
    note = (
        f"brought to {target.precision} with made-up inputs: its latency counts, its outputs mean nothing; with data of"
        f" yours: {command('export', path, '--target', 'NAME', '--calibration', 'DATA')}"
    )
    return folder / MODEL_FILE, note


def _open(
    path: Path,
    target: Target,
    batch: int,
    shapes: dict[str, tuple[int, ...]],
    stack: ExitStack,
    args: argparse.Namespace,
) -> Subject:
    """A bundle on its own target; a run's deployed model or a model file on the asked one."""
    import tempfile
    from pathlib import Path

    from compactmtl.artifacts.run_folder import is_run
    from compactmtl.backends import get_backend
    from compactmtl.errors import ArtifactError
    from compactmtl.export import Bundle
    from compactmtl.runs import Run
    from compactmtl.verify.profile import Subject

    note = ""
    if (path / BUNDLE_FILE).is_file():
        bundle = Bundle.open(path)
        if bundle.doubt:
            print(f"warning: {path} cannot be trusted: {bundle.doubt}", file=sys.stderr)
        file, target = bundle.model_path, bundle.info.target
    elif path.is_dir():
        if not is_run(path):
            raise ArtifactError(
                f"{path} is neither a run nor a bundle",
                f"name a run, a bundle or a model file such as {MODEL_FILE}",
            )
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="compactmtl-")))
        file = _export(Run.open(path, args.overrides), target, batch, folder / MODEL_FILE)
    elif not path.exists():
        raise ArtifactError(f"{path}: there is no such run, bundle or model file", "check the path")
    else:
        file = path
        if _converts(file, target, args.target or DEFAULT_TARGET):
            get_backend(target.backend).require(target)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="compactmtl-")))
            file, note = _lowered(file, target, batch, shapes, folder)
            print(f"note: {path}: {note}", file=sys.stderr)
    runner = stack.enter_context(get_backend(target.backend).open(file, target))
    own = {name: shape for name, shape in shapes.items() if name in runner.input_names}
    return Subject(file, target, runner, own, note)


def _export(run: Run, target: Target, batch: int, path: Path) -> Path:
    """The run's deployed model as a file for the target, in its precision: int8 with every layer quantized."""
    from compactmtl.backends import get_backend
    from compactmtl.data.inputs import each
    from compactmtl.export.artifact import ArtifactWriter

    get_backend(target.backend).require(target)
    model = run.load_compact() if run.has_compact else run.load_plain()
    inputs = run.example_inputs(batch)
    # a free batch, so that throughput can be measured at several sizes
    free = target.model_copy(update={"onnx": target.onnx.model_copy(update={"dynamic_batch": True})})
    ArtifactWriter(
        run, free, each(lambda one: one.new_zeros(one.shape), inputs if run.recipe.data.inputs else inputs[0])
    ).write(model, path)
    return path


def _write(result: Profile, folder: Path) -> None:
    import json

    from compactmtl.artifacts.files import write_text
    from compactmtl.verify.profile import export_times

    (folder / "times").mkdir(parents=True, exist_ok=True)
    write_text(folder / PROFILE, result.model_dump_json(indent=1) + "\n")
    for name, stats in result.latency.stats.items():
        file = folder / "times" / f"{name.replace('/', '-')}.json"
        write_text(file, json.dumps(export_times(stats, result.subjects[name].phases), indent=1) + "\n")


def summary(result: Profile) -> Iterator[str]:
    """The figures in lines for a terminal."""
    from compactmtl.verify.speed import band_in_words, in_words, speed_of

    for name, one in result.subjects.items():
        stats = result.latency.stats[name]
        threads = "" if stats.threads is None else f", {stats.threads} thread{'s' * (stats.threads > 1)}"
        yield f"{name}: {one.megabytes:.2f} MB, {stats.backend} {stats.version}, {stats.provider}, {stats.precision}{threads}"
        yield (
            f"  latency     median {stats.median_ms:.3f} ms, min {stats.min_ms:.3f}, p90 {stats.p90_ms:.3f},"
            f" p99 {stats.p99_ms:.3f}, quartiles' distance {stats.variation:.1%}, n {len(stats.samples_ms)}, batch {stats.batch}"
        )
        if stats.process_ms is not None:
            yield f"  processor   median {stats.process_ms:.3f} ms of all threads together"
        if name != result.latency.reference:
            speed = speed_of(result.latency, name)
            yield f"  against     {result.latency.reference}: {in_words(speed)}, {band_in_words(speed) or 'no band'} by round"
        for batch, rate in one.throughput.items():
            yield f"  throughput  {rate:.1f} samples/s at batch {batch}"
        if one.phases is not None:
            phases = one.phases
            yield (
                f"  on the GPU  copy in {phases.copy_in_ms:.3f} ms, compute {phases.compute_ms:.3f},"
                f" copy out {phases.copy_out_ms:.3f}"
            )
        if one.memory is not None:
            yield f"  memory      {one.memory.peak_mib:.1f} MiB at peak beyond the runtime's own"
        if one.energy_mj is not None:
            yield f"  energy      {one.energy_mj:.2f} mJ a run, of the whole board"
        for layer in sorted(one.layers or (), key=lambda layer: -layer.milliseconds)[:MOST_LAYERS]:
            yield f"  layer       {layer.milliseconds:8.3f} ms  {layer.operator:<14} {layer.name}"
        if one.note:
            yield f"  note        {one.note}"
        for part, reason in one.not_run.items():
            yield f"  not run     {part}: {reason}"
