"""An ONNX file from elsewhere in the place of a module: what it computes, and the same file in another precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from compactmtl.artifacts.told import Progress
from compactmtl.backends import Runner, open_graph, reference_target
from compactmtl.backends.base import TensorInfo
from compactmtl.backends.batching import fixed_batch
from compactmtl.backends.model_file import external_files, model_sha256
from compactmtl.backends.noise import noise_for
from compactmtl.backends.precision import file_precision
from compactmtl.config.target import BF16_OPSET, Target
from compactmtl.errors import ArtifactError, ConfigError
from compactmtl.export.precision import PrecisionRecord, apply_precision
from compactmtl.export.precision.apply import Check
from compactmtl.export.precision.files import save
from compactmtl.export.precision.ranges import Feed
from compactmtl.export.writer import EXTERNAL

QDQ_OPSET = 13  # the first in which a scale an output channel can be given


class OnnxModel(nn.Module):
    """A float32 ONNX file as a module: tensors in the file's order, a dict of its outputs back.

    It runs on ONNX Runtime's CPU provider, which is what a lowered file is held against. Raises ArtifactError where
    the file cannot be opened, ConfigError where it is of another precision than float32.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        if not self.path.is_file():
            raise ArtifactError(f"{self.path}: there is no such file", "name an ONNX file")
        runner: Runner = open_graph(self.path, reference_target())
        precision = file_precision(self.path)
        if precision != "fp32":
            raise ConfigError(
                f"{self.path} is a model in {precision}: what was lost on the way there can't be told",
                "give the float32 file that it was made from",
            )
        self.infos: tuple[TensorInfo, ...] = runner.inputs
        self.input_names = runner.input_names
        self.batch = fixed_batch(runner)
        self._run: Callable[[Mapping[str, object]], Mapping[str, object]] = runner.run  # type: ignore[assignment]
        self.eval()

    def forward(self, *tensors: Tensor) -> dict[str, Tensor]:
        """Tensors in the order of the file's inputs."""
        if len(tensors) != len(self.input_names):
            raise ArtifactError(
                f"{self.path} takes {len(self.input_names)} inputs, {', '.join(self.input_names)};"
                f" {len(tensors)} given",
                "give one tensor for each",
            )
        arrays = {name: one.numpy(force=True) for name, one in zip(self.input_names, tensors, strict=True)}
        outputs = self._run(arrays)
        return {name: torch.from_numpy(one) for name, one in outputs.items()}

    def noise(self, batch: int, shapes: Mapping[str, tuple[int, ...]] | None = None) -> tuple[Tensor, ...]:
        """Made-up inputs, for a file of which nothing is known. Raises ConfigError where a size is free and not in `shapes`."""
        arrays = noise_for(self.infos, self.batch or batch, shapes)
        return tuple(torch.from_numpy(arrays[name]) for name in self.input_names)

    def fitted(self, target: Target, progress: Progress = lambda line: None) -> Target:
        """The target as far as the file decides it: whether its batch is free, and else its size, which `progress` is told.

        Raises ConfigError where the target asks for what the file can't have.
        """
        config = target.onnx
        for key in ("preprocess", "postprocess", "dynamic_size"):
            if getattr(config, key):
                raise ConfigError(
                    f"the target sets onnx.{key}, and {self.path} is taken as it is", f"leave onnx.{key} out"
                )
        changed = config.model_copy(update={"dynamic_batch": self.batch is None})
        latency = target.latency
        if self.batch is None:
            return target.model_copy(update={"onnx": changed})
        if config.dynamic_batch or latency.batch not in (1, self.batch):
            key = "onnx.dynamic_batch" if config.dynamic_batch else f"latency.batch {latency.batch}"
            raise ConfigError(
                f"the target asks for {key}, and {self.path} takes {self.batch} samples at a time",
                f"leave it out of the target, or set latency.batch to {self.batch}",
            )
        if latency.batch != self.batch:
            progress(f"latency is of batch {self.batch}, which the file is fixed to, not of the target's 1")
            latency = latency.model_copy(update={"batch": self.batch})
        return target.model_copy(update={"onnx": changed, "latency": latency})

    @property
    def sha256(self) -> str:
        """Of the file and its weights."""
        return model_sha256(self.path)


def write_file(
    model: OnnxModel,
    path: Path,
    target: Target,
    feeds: Sequence[Feed],
    *,
    metadata: Mapping[str, str] | None = None,
    check: Check | None = None,
    progress: Progress = lambda line: None,
) -> PrecisionRecord | None:
    """Copy a float32 file to `path` and lower its precision, as `write_module` does it of a module.

    A file whose opset lacks what the precision needs is converted to `onnx.opset` of the target, which is said. Raises
    ConfigError where that fails.
    """
    external_files(model.path)  # raises where weights lie in another folder
    loaded = onnx.load(model.path)
    least = {"int8": QDQ_OPSET, "bf16": BF16_OPSET}.get(target.precision, 0)
    opset = max((one.version for one in loaded.opset_import if one.domain in ("", "ai.onnx")), default=0)
    if opset < least:
        progress(f"converting from opset {opset} to {target.onnx.opset}, which {target.precision} needs")
        loaded = _converted(loaded, model.path, target.onnx.opset)
    held = {one.key: one.value for one in loaded.metadata_props}
    onnx.helper.set_model_props(loaded, {**held, **(metadata or {})})
    path.parent.mkdir(parents=True, exist_ok=True)
    save(loaded, path, EXTERNAL[target.onnx.external_data])
    return apply_precision(path, target, feeds, check=check, progress=progress)


def _converted(model: onnx.ModelProto, path: Path, opset: int) -> onnx.ModelProto:
    try:
        return onnx.version_converter.convert_version(model, opset)
    except Exception as error:  # the converter has no adapter for some operators, and says so in many ways
        raise ConfigError(
            f"{path} can't be brought to opset {opset}: {str(error).strip().splitlines()[0]}",
            f"export it with opset {opset} or later where it was made",
        ) from error
