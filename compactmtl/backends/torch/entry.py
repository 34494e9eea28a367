"""The entry of torch, which runs live modules. It opens no file: a torch format that holds a program can run code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from compactmtl.backends.base import Availability, Backend, GraphPass, Link, Runner
from compactmtl.config.precision import Precision
from compactmtl.config.target import Target
from compactmtl.errors import ArtifactError


class TorchBackend(Backend):
    """Runs live modules (`compactmtl.backends.torch.runner.TorchRunner`)."""

    name = "torch"
    packages = ("torch",)
    precisions: ClassVar[Mapping[Precision, GraphPass]] = {"fp32": "none"}
    opens_files = False

    def on_cpu(self, target: Target) -> bool:
        return True

    def availability(self, target: Target) -> Availability:
        try:
            import torch  # noqa: F401
        except Exception as error:  # a broken binary raises anything
            reason = str(error).splitlines()[0] if str(error) else "no reason given"
            return Availability(False, f"{type(error).__name__}: {reason}")
        return Availability(True)

    def links(self) -> Iterable[Link]:
        try:
            import torch
        except Exception:  # as above; there is nothing to say of it then
            return ()
        cuda = torch.version.cuda
        return () if cuda is None else (Link(f"torch {torch.__version__}", "CUDA", cuda),)

    def open_module(self, module: Any, input_names: Sequence[str], target: Target) -> Runner:
        from compactmtl.backends.torch.live import LiveRunner

        self.require(target)
        return LiveRunner(module, input_names, threads=target.threads)

    def open(self, model: Path, target: Target) -> Runner:
        raise ArtifactError(
            f"{model}: the torch backend runs a live module, not a model file",
            "open the run instead, or use a target whose backend opens files, such as onnxruntime",
        )
