"""What `export` does with an ONNX file from elsewhere: the bundle that it writes of a run, without tasks."""

from __future__ import annotations

import argparse
import math
import sys
from typing import TYPE_CHECKING, Any, Literal

from compactmtl.artifacts.told import tell
from compactmtl.cli.parser import OVERRIDES, refuse

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from compactmtl.config import Target
    from compactmtl.data.base import Preprocessing
    from compactmtl.export import Bundle
    from compactmtl.export.onnx_file import OnnxModel

ONNX = ".onnx"
# Options that speak of one kind of model alone.
OF_FILES = ("calibration", "shape", "mean", "std", "evaluate", "tolerance", "latency_ms")
OF_RUNS = ("kit", "kit_out", "kit_images", "prepare", "tasks", "device", OVERRIDES)


def add_file_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options for an ONNX file."""
    files = parser.add_argument_group("of an ONNX file")
    files.add_argument(
        "--calibration",
        metavar="PATH",
        help="data that fp16 and int8 are calibrated on, and outputs are compared on: .npz with every input by name, .npy,"
        " a folder of such, or a folder of pictures (with --mean and --std)",
    )
    files.add_argument(
        "--mean", metavar="R,G,B", help="of pictures: what is subtracted from each channel's values of 0 to 1"
    )
    files.add_argument("--std", metavar="R,G,B", help="of pictures: what values are divided by after that")
    files.add_argument(
        "--shape",
        metavar="NAME=1x3x224x224",
        action="append",
        default=[],
        help="shape of an input that has free dimensions beside the batch",
    )
    files.add_argument(
        "--evaluate",
        metavar="MODULE:FUNCTION",
        help="your evaluation, as export_bundle takes it: function(predict) gives {metric: value}; needs --trust",
    )
    files.add_argument(
        "--tolerance",
        metavar="SHARE",
        type=float,
        help="largest difference from the float32 file as a share of an output's range, as a gate (int8 has none by default)",
    )
    files.add_argument("--latency-ms", metavar="MS", type=float, help="largest median latency, as a gate")


def is_file(args: argparse.Namespace) -> bool:
    """Whether the command is about an ONNX file. Raises ConfigError where an option is of the other kind."""
    file = str(args.run).lower().endswith(ONNX)
    refuse(args, OF_RUNS if file else OF_FILES, f"{'an ONNX file' if file else 'a run'}, {args.run}")
    return file


def export_file(args: argparse.Namespace, targets: Mapping[str, Target]) -> int:
    """Write a bundle of the file for each target; a failed gate fails the command after all are done."""
    from pathlib import Path

    from compactmtl.cli.export import gate_lines, latency_lines, parity_line
    from compactmtl.errors import ConfigError, command
    from compactmtl.export.module import export_bundle
    from compactmtl.export.onnx_file import OnnxModel

    if args.out is not None and len(targets) > 1:
        raise ConfigError("--out names one folder for several targets", "export them one by one")
    model = OnnxModel(args.run)
    baseline = None if args.baseline is None else OnnxModel(args.baseline)
    images = _images(args, model)
    evaluate = None if args.evaluate is None else _function(args.evaluate)
    shapes = _shapes(args, model, images)
    bundles: list[Bundle] = []
    for name, target in targets.items():
        print(f"{model.path.name} for {name}", file=sys.stderr)
        chosen = _with_tolerance(target, args.tolerance)
        place = Path(args.out) if args.out else model.path.with_name(f"{model.path.stem}-{name}")
        bundle = export_bundle(
            model,
            _example(args, model, chosen, shapes, images),
            place,
            target=chosen,
            target_name=name,
            evaluate=evaluate,
            calibration=_calibration(args, model, chosen, images),
            baseline=baseline,
            images=images,
            latency_ms=args.latency_ms,
            progress=tell,
        )
        bundles.append(bundle)
        found = bundle.verification
        assert found is not None
        for task, metrics in found.accuracy.artifact.items():
            for metric, value in metrics.items():
                print(
                    f"{task} {metric}: {value:.5g}, of the float32 file {found.accuracy.torch[task][metric]:.5g}"
                )
        print(parity_line(found.parity, "samples"))
        print("\n".join([*latency_lines(found.latency), f"size: {found.megabytes:.2f} MB"]))
        print("\n".join(gate_lines(found.gates)))
        if args.calibration is None:
            print("note: outputs were compared on made-up inputs alone; --calibration PATH gives real ones")
        print(f"bundle: {bundle.path}\n")
    first, *more = (one.path for one in bundles)
    print(f"next: {command('report', first, *more)}")
    for bundle in bundles:
        bundle.require()
    return 0


def _images(args: argparse.Namespace, model: OnnxModel) -> Preprocessing | None:
    """How pictures become the input, as --mean and --std say. Raises ConfigError where the file takes none."""
    from compactmtl.data.base import Preprocessing
    from compactmtl.errors import ConfigError

    if (args.mean is None) != (args.std is None):
        raise ConfigError("--mean and --std belong together", "give both, or neither")
    if args.mean is None:
        return None
    (info, *more) = model.infos
    shape = info.shape or ()
    shape = dict(_shape(text, model) for text in args.shape).get(info.name, shape)
    if more or len(shape) != 4 or None in shape[1:]:
        raise ConfigError(
            f"--mean is of pictures, and {model.path} takes {', '.join(f'{one.name} {one.shape}' for one in model.infos)}",
            "leave it out, or fix the size of one input (batch, channels, height, width) by --shape",
        )
    height, width = shape[2:]
    assert height is not None and width is not None
    mean, std = _channels("mean", args.mean, shape[1]), _channels("std", args.std, shape[1])
    return Preprocessing(size=(height, width), mean=mean, std=std)


def _channels(key: Literal["mean", "std"], text: str, count: int | None) -> tuple[float, ...]:
    """A number for each channel of the file's pictures."""
    from compactmtl.data.base import channel_fault
    from compactmtl.errors import ConfigError

    option = f"--{key}"

    try:
        values = tuple(float(one) for one in text.split(","))
    except ValueError as error:
        raise ConfigError(f"{option} {text}: expected numbers", "write 0.485,0.456,0.406") from error
    if len(values) != count:
        raise ConfigError(
            f"{option} {text}: {len(values)} numbers for {count} channels", "give one a channel"
        )
    if fault := channel_fault(key, values):
        raise ConfigError(f"--{fault}", "write 0.229,0.224,0.225")
    return values


def _shapes(
    args: argparse.Namespace, model: OnnxModel, images: Preprocessing | None
) -> dict[str, tuple[int, ...]]:
    """What --shape says, by input. Raises ConfigError where it says it twice, or nothing would read it."""
    from compactmtl.errors import ConfigError

    shapes: dict[str, tuple[int, ...]] = {}
    for text in args.shape:
        name, shape = _shape(text, model)
        if name in shapes:
            raise ConfigError(f"--shape {text}: {name} has a shape already", "give one for each input")
        shapes[name] = shape
    if shapes and args.calibration is not None and images is None:
        raise ConfigError(
            "--shape is of made-up inputs, and --calibration gives real ones with shapes of their own",
            "leave one of the two out",
        )
    return shapes


def _shape(text: str, model: OnnxModel) -> tuple[str, tuple[int, ...]]:
    from compactmtl.cli.profile import shape_of
    from compactmtl.errors import ConfigError

    name, shape = shape_of(text)
    if name not in model.input_names:
        raise ConfigError(
            f"--shape {text}: {model.path} has no input {name!r}",
            f"the inputs are {', '.join(model.input_names)}",
        )
    return name, shape


def _function(name: str) -> Any:
    """The user's evaluation, imported with the user's word."""
    import inspect

    from compactmtl.config import trust
    from compactmtl.errors import ConfigError

    found = trust.import_class(name, "--evaluate", trust.those(inspect.isfunction), "functions")
    if not callable(found):
        raise ConfigError(f"--evaluate {name} is no function", "name a function of one argument, predict")
    return found


def _with_tolerance(target: Target, tolerance: float | None) -> Target:
    from compactmtl.errors import ConfigError

    if tolerance is None:
        return target
    if not 0 < tolerance < math.inf:
        raise ConfigError(f"--tolerance {tolerance} bounds nothing", "give a share above 0, such as 0.05")
    return target.model_copy(update={"parity": target.parity.model_copy(update={"tolerance": tolerance})})


def _example(
    args: argparse.Namespace,
    model: OnnxModel,
    target: Target,
    shapes: dict[str, tuple[int, ...]],
    images: Preprocessing | None,
) -> tuple[Any, ...]:
    """The first calibration batch, else made-up inputs."""
    if args.calibration is not None:
        first = next(_batches(args, model, images, 1), None)
        if first is not None:
            return first
    return model.noise(target.latency.batch, shapes)


def _calibration(
    args: argparse.Namespace, model: OnnxModel, target: Target, images: Preprocessing | None
) -> Iterator[tuple[Any, ...]] | None:
    samples = max(target.fp16.samples if target.precision == "fp16" else target.int8.samples, 1)
    return None if args.calibration is None else _batches(args, model, images, samples)


def _batches(
    args: argparse.Namespace, model: OnnxModel, images: Preprocessing | None, samples: int
) -> Iterator[tuple[Any, ...]]:
    from pathlib import Path

    from compactmtl.export.calibration_files import batches_in

    return batches_in(Path(args.calibration), model.infos, images, samples)
