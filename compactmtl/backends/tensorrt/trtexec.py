"""The trtexec command that builds and times the engine a target asks for, with every default written out.

TensorRT 11 turned three defaults around (CUDA graph on, transfers off, spin-wait on) and dropped precision flags, so a
command without them measures another thing than its elder: one command for each major is written.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Literal

from compactmtl.artifacts.layout import PREPARED_FILE
from compactmtl.backends.tensorrt.options import ShapeRange, tensorrt_config
from compactmtl.backends.tensorrt.shapes import shape_range
from compactmtl.config.target import Target

Major = Literal[10, 11]
MAJORS: tuple[Major, ...] = (10, 11)
HARDWARE = {"exact": None, "same_compute_capability": "sameComputeCapability", "ampere_plus": "ampere+"}


def trtexec(
    target: Target,
    model: str,
    inputs: Mapping[str, Sequence[int | str]],
    major: Major,
    *,
    files: Mapping[str, str] | None = None,
    name: str = "model",
) -> list[str]:
    """The command's words.

    Args:
        target: of backend tensorrt.
        model: file name of the ONNX graph, which carries the precision.
        inputs: shape of each input; a free dimension is its name.
        major: of TensorRT.
        files: raw bytes of each input at the optimal shape, by name.
        name: stem of the files that it writes.
    """
    options = tensorrt_config(target)
    words = ["trtexec", f"--onnx={model}", f"--saveEngine={name}.trtexec.engine"]
    if major == 10:
        words.append("--stronglyTyped")  # 11 has no other networks and no such flag
    words += [
        f"--builderOptimizationLevel={options.optimization_level}",
        "--profilingVerbosity=detailed",
        f"--timingCacheFile={name}.timing",
    ]
    if not options.tf32:
        words.append("--noTF32")
    if options.workspace_mib is not None:
        words.append(f"--memPoolSize=workspace:{options.workspace_mib}M")
    if options.version_compatible:
        words += ["--versionCompatible", "--excludeLeanRuntime"]
    if (level := HARDWARE[options.hardware]) is not None:
        words.append(f"--hardwareCompatibilityLevel={level}")
    if options.refit:
        words.append("--refit")
    if options.aux_streams is not None:
        words.append(f"--maxAuxStreams={options.aux_streams}")
    ranges = free_inputs(target, inputs)
    for bound in ("min", "opt", "max"):
        if ranges:
            shown = ",".join(
                f"{key}:{'x'.join(map(str, getattr(one, bound)))}" for key, one in ranges.items()
            )
            words.append(f"--{bound}Shapes={shown}")
    if ranges:
        words.append(
            "--shapes=" + ",".join(f"{key}:{'x'.join(map(str, one.opt))}" for key, one in ranges.items())
        )
    return words + _running(target, major, files or {}, name)


def _running(target: Target, major: Major, files: Mapping[str, str], name: str) -> list[str]:
    """How it is run and timed: as `compactmtl export` does, with copies and a blocking wait."""
    graph = tensorrt_config(target).cuda_graph
    words = [
        "--warmUp=500",
        f"--iterations={target.latency.repeats}",
        "--duration=3",
        "--avgRuns=1",
        "--infStreams=1",
        "--idleTime=0",
        "--percentile=90,99",
        "--allocationStrategy=static",
    ]
    if major == 10:  # copies and a blocking wait are its defaults
        words += [*(["--useCudaGraph"] if graph else []), "--separateProfileRun"]
    else:
        words += ["--includeDataTransfers", "--noSpinWait", *([] if graph else ["--noCudaGraph"])]
    if files:
        words.append("--loadInputs=" + ",".join(f"{key}:{file}" for key, file in files.items()))
    return [
        *words,
        f"--exportTimes={name}.times.json",
        f"--exportProfile={name}.profile.json",
        f"--exportLayerInfo={name}.layers.json",
        f"--exportOutput={name}.output.json",
    ]


def free_inputs(target: Target, inputs: Mapping[str, Sequence[int | str]]) -> dict[str, ShapeRange]:
    """Shapes of the inputs that have free dimensions."""
    ranges = {}
    options = tensorrt_config(target)
    for key, shape in inputs.items():
        sizes = tuple(size if isinstance(size, int) else -1 for size in shape)
        if (one := shape_range(key, sizes, options, target.latency.batch)) is not None:
            ranges[key] = one
    return ranges


def script(words: Sequence[str], major: Major) -> str:
    """The command as a shell script that runs beside the model."""
    lines = " \\\n  ".join(shlex.quote(word) for word in words)
    return (
        "#!/bin/sh\n"
        f"# Build and time the engine with the trtexec of TensorRT {major}. Written, not run: see {PREPARED_FILE}.\n"
        'set -eu\ncd "$(dirname "$0")"\n'
        f"{lines}\n"
    )
