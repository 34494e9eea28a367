"""The protocol of a backend: its options, what it can run here, and models opened for running.

A backend is a folder `backends/<name>/` whose `entry.py` holds one class, a `Backend`. All that is known of a backend by
name is in its folder; `registry` finds it there.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from compactmtl.backends.device import DeviceRuntime
from compactmtl.backends.precision import check_precision
from compactmtl.config.precision import Precision
from compactmtl.config.schema import Frozen
from compactmtl.config.target import Target
from compactmtl.config.validate import validate_options
from compactmtl.errors import ArtifactError, ConfigError, MissingDependencyError

Arrays = Mapping[str, NDArray[Any]]
Shape = Sequence[int | str]  # a free dimension is its name
# How an exported float32 graph is brought to a precision: left as it is, in 16 bits, or with Q/DQ pairs.
GraphPass = Literal["none", "half", "qdq"]
PROFILE_WARMUP = 5  # runs before those that a profile of layers counts
# The multiples of channels that kernels are written for: 16 floats fill a vector of a CPU, int8 dot products take 4
# values at a time, tensor cores 8 half or 16 int8 values.
STEPS: Mapping[Precision, int] = {"fp32": 16, "fp16": 8, "bf16": 8, "int8": 4}
TENSOR_CORES_INT8 = 16


class BackendOptions(Frozen):
    """The keys of a target that one backend alone reads; by default there are none."""

    @property
    def portable(self) -> Self:
        """The same without files of one machine, as a bundle carries it."""
        return self


Own = TypeVar("Own", bound=BackendOptions)


def read_options(options: type[Own], target: Target) -> Own:
    """A target's own keys as a backend's options. Raises ConfigError naming the key, and the nearest right one."""
    given = target.model_dump(mode="json", include=set(target.own))
    return validate_options(options, given, "")


@dataclass(frozen=True)
class TensorInfo:
    """One input or output of an opened model; None marks a dimension or dtype that is free."""

    name: str
    shape: tuple[int | None, ...] | None = None
    dtype: str | None = None  # numpy's name, such as float32

    def mismatch(self, array: NDArray[Any]) -> str:
        """What is wrong with `array` for this tensor, in words; empty where it fits."""
        if self.shape is not None:
            fits = len(array.shape) == len(self.shape) and all(
                want is None or want == have for want, have in zip(self.shape, array.shape, strict=True)
            )
            if not fits:
                return f"takes shape {_show(self.shape)}, found {_show(array.shape)}"
        if self.dtype is not None and array.dtype.name != self.dtype:
            return f"takes {self.dtype}, found {array.dtype.name}"
        return ""


@dataclass(frozen=True)
class Description:
    """What a runner really runs on, as the backend itself reports it."""

    backend: str
    version: str
    provider: str
    device: str
    precision: str
    threads: int | None
    layers: Mapping[str, int] = field(
        default_factory=dict
    )  # layers with weights by the precision they run in


class LayerTime(Frozen):
    """One step of a model as its runtime executes it: layers are fused, so names are the runtime's own."""

    name: str
    operator: str
    milliseconds: float  # a quantile over the runs, by default the median
    precision: str = ""  # of what it writes, where the runtime tells


@dataclass(frozen=True)
class Availability:
    """Whether a backend can run here and, if not, what is missing and how to get it."""

    available: bool
    reason: str = ""
    hint: str = ""


@dataclass(frozen=True)
class DeviceKit:
    """How a backend's models run on a machine that has the runtime alone: the code, its settings, what to install."""

    runtime: type[DeviceRuntime]  # its module becomes part of kit.py
    settings: Mapping[str, Any]  # as JSON
    install: str  # what brings the runtime to a machine


@dataclass(frozen=True)
class Link:
    """A library of NVIDIA's that an installed package needs: `version` as it asks for it, such as 10 or 13.0."""

    package: str  # with its own version
    library: str
    version: str

    @property
    def major(self) -> str:
        """The part that has to be the same within a process."""
        return self.version.split(".")[0]


@dataclass(frozen=True)
class Ahead:
    """What was built for a device that is not here: the new files, and what they are in words."""

    files: tuple[Path, ...]
    summary: str


@dataclass(frozen=True)
class Phases:
    """One run by the GPU's own clock, in milliseconds: copy in, compute, copy out."""

    copy_in_ms: float
    compute_ms: float
    copy_out_ms: float


class Runner(ABC):
    """An opened model, used as a context manager; `run` maps input arrays to output arrays by name."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names in the model's own order."""
        return tuple(tensor.name for tensor in self.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names in the model's own order."""
        return tuple(tensor.name for tensor in self.outputs)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.floating[Any]]]:
        """Check the inputs, run, and return every output by name.

        Raises ArtifactError on a wrong name, shape or dtype.
        """
        if set(inputs) != set(self.input_names):
            raise ArtifactError(
                f"the model takes inputs {sorted(self.input_names)}, found {sorted(inputs)}",
                "name every input as the model does",
            )
        for tensor in self.inputs:
            if wrong := tensor.mismatch(inputs[tensor.name]):
                raise ArtifactError(
                    f"input '{tensor.name}' of the model {wrong}",
                    "preprocess to the model's own input, or export with dynamic_batch: true for other batch sizes",
                )
        return self._run(inputs)

    @abstractmethod
    def _run(self, inputs: Arrays) -> dict[str, NDArray[np.floating[Any]]]: ...

    @abstractmethod
    def describe(self) -> Description: ...

    def layer_times(self, inputs: Arrays, repeats: int = 20, quantile: float = 0.5) -> tuple[LayerTime, ...]:
        """Time of every step in the order of execution, in an instance of its own that only profiles.

        `quantile` of the runs: where other programs disturb most of them a low one tells what a step takes.

        Raises ArtifactError where the backend has no profile of layers.
        """
        raise ArtifactError(
            f"backend {self.describe().backend} has no profile of layers", "profile an exported model"
        )

    def timed(self, inputs: Arrays) -> Phases:
        """One run, its copies and compute apart. Raises ArtifactError where the backend has no clock of a GPU."""
        raise ArtifactError(
            f"backend {self.describe().backend} runs in host memory: nothing is copied", "run it on a GPU"
        )

    @property
    def device_bytes(self) -> int | None:
        """Memory of activations on the device; None where that is host memory."""
        return None

    def close(self) -> None:
        """Free what the runner holds."""


class Backend(ABC):
    """One way of running an exported model. An entry module holds one concrete subclass.

    Importing the entry loads no runtime: `availability` and `open` do.
    """

    name: ClassVar[str]
    Options: ClassVar[type[BackendOptions]] = BackendOptions  # keys of a target that only this backend reads
    packages: ClassVar[tuple[str, ...]] = ()  # distributions whose versions decide an artifact's numbers
    # What a target may ask for, and how the graph is brought there before the backend sees it.
    precisions: ClassVar[Mapping[Precision, GraphPass]] = {
        "fp32": "none",
        "fp16": "half",
        "bf16": "half",
        "int8": "qdq",
    }
    # Operators that the runtime takes in no 16-bit type of that name: they stay in float32, and the record says so.
    float_ops: ClassVar[Mapping[Precision, frozenset[str]]] = {}
    opens_files: ClassVar[bool] = True  # False: it runs live modules alone, and no target exports for it
    is_reference: ClassVar[bool] = False  # it runs every graph on this machine's CPU: `open_graph`

    @abstractmethod
    def availability(self, target: Target) -> Availability:
        """Probe without side effects. Raises ConfigError on options that are none of this backend, and nothing else."""

    def cases(self) -> Iterable[tuple[str, Target]]:
        """What `compactmtl doctor` asks about, each with its label."""
        return [(self.name, Target(backend=self.name))]

    def objection(self, target: Target) -> str:
        """Why the backend can't serve the target on any machine, beginning with the key; empty where it can."""
        if target.precision in self.precisions:
            return ""
        return f"precision {target.precision}: backend {self.name} takes {', '.join(self.precisions)}"

    def links(self) -> Iterable[Link]:
        """What of NVIDIA's libraries the installed packages of this backend need; loads none of them."""
        return ()

    def require(self, target: Target) -> None:
        """Raise where the backend can't run `target` here.

        ConfigError where it could nowhere, MissingDependencyError saying what is missing here.
        """
        read_options(self.Options, target)
        if objection := self.objection(target):
            raise ConfigError(objection, "change that key of the target, or choose another backend")
        answer = self.availability(target)
        if not answer.available:
            raise MissingDependencyError(f"backend {self.name} can't run here: {answer.reason}", answer.hint)

    def on_cpu(self, target: Target) -> bool:
        """Whether the model runs on a CPU."""
        return False

    def channel_step(self, target: Target) -> int:
        """The multiple of channels that runs best: the target's `align`, else its precision's."""
        return self.default_step(target) if target.align is None else target.align

    def default_step(self, target: Target) -> int:
        """The same for a target that does not say."""
        return STEPS[target.precision]

    def portable(self, target: Target) -> Target:
        """The target with all of this backend's options written out and without files of one machine."""
        options = read_options(self.Options, target).portable
        return target.with_own(options.model_dump(mode="json"))

    def with_lean_runtime(self, target: Target, library: Path) -> Target | None:
        """The target with a library that runs what an earlier version built; None where the backend loads none."""
        return None

    def build(self, model: Path, target: Target) -> tuple[Path, ...]:
        """Make beforehand what `open` would make of a model file, beside it; the new files. By default nothing."""
        return ()

    def build_ahead(self, model: Path, target: Target) -> Ahead | None:
        """Build beside a model file what `open` takes on a device that is not here; None where that needs the device.

        Raises as `build`.
        """
        return None

    def companions(self, model: Path) -> tuple[str, ...]:
        """Names of files beside a model that `open` reads with it, where they are; its external weights aside."""
        return ()

    def wheel(self, target: Target) -> str:
        """What pip installs to run a bundle for the target: names of packages, the first of which has the runtime's version."""
        return self.packages[0] if self.packages else ""

    def in_bundle(self, target: Target) -> str:
        """The source of `open_model`, with which infer.py of a bundle for the target opens the model: in_bundle.py beside the entry.

        It imports numpy, the standard library and the runtime alone. Empty where there is none.
        """
        source = Path(inspect.getfile(type(self))).with_name("in_bundle.py")
        return source.read_text(encoding="utf-8") if source.is_file() else ""

    @abstractmethod
    def open(self, model: Path, target: Target) -> Runner:
        """Open a model file for `target`. Raises MissingDependencyError where the backend can't run as asked.

        A precision that it would replace by another one is such a case: PrecisionError.
        """

    def open_module(self, module: Any, input_names: Sequence[str], target: Target) -> Runner:
        """Run a live torch module for `target`; only where `opens_files` is False."""
        raise NotImplementedError(f"backend {self.name} opens files")

    def open_graph(self, model: Path, target: Target) -> Runner:
        """Open a graph that is meant for another device on this machine's CPU; only where `is_reference`."""
        raise NotImplementedError(f"backend {self.name} is no reference")

    def scripts(
        self, model: str, target: Target, inputs: Mapping[str, Shape], files: Mapping[str, str]
    ) -> dict[str, str]:
        """Shell scripts that do on a device what `build` and `open` would do, by file name; by default none.

        `model` is the graph's file name, `inputs` its inputs' shapes, `files` raw bytes of an example of each.
        """
        return {}

    def device_kit(self, target: Target, inputs: Mapping[str, Shape]) -> DeviceKit | None:
        """What a device kit of the target needs, for models with these inputs; None where the backend has no kit.

        Raises ConfigError where the target leaves shapes open that the device must know.
        """
        return None

    def check_device(self, facts: Mapping[str, Any], model: Path, target: Target) -> dict[str, int]:
        """Hold the types in which a device ran a model file, as its kit's facts say, against the target's precision.

        Returns the number of layers with weights by precision. Raises PrecisionError or ArtifactError where they are
        others than the target asks for, or can't be told.
        """
        layers = {str(kind): int(count) for kind, count in dict(facts.get("layers") or {}).items()}
        check_precision(layers, target.precision, f"{self.name} on the device")
        return layers


def run_failure(model: Path, runtime: str, reason: str) -> ArtifactError:
    """Of a model that opens and then fails on inputs whose shapes fit, such as a size that it can't compute."""
    return ArtifactError(
        f"{runtime} fails while it runs {model}: {reason}",
        "where a dimension is free, give a size that the network can take; else export it again",
    )


def _show(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"
