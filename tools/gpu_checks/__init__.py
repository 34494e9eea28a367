"""The checks of tools/gpu_check.py: what each needs, does, and may take. Importing them loads no torch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compactmtl.errors import MissingDependencyError


@dataclass(frozen=True)
class Setting:
    """Where checks run. `folder` is theirs for a call of the tool; `tiny` sizes are for rehearsals on the CPU."""

    device: str
    folder: Path
    tiny: bool

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"


@dataclass(frozen=True)
class Check:
    """One check: `call` is `module:function` below this package, which takes a Setting and returns what it measured.

    It raises CheckFailed where its bound does not hold, and MissingDependencyError where something is missing. `shown`
    maps keys of what is measured to formats of the table.
    """

    name: str
    what: str
    bound: str
    seconds: float  # it may take
    call: str
    shown: Mapping[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()

    def run(self, setting: Setting) -> dict[str, Any]:
        """Run it here."""
        module, _, function = self.call.partition(":")
        measured: dict[str, Any] = getattr(importlib.import_module(f"{__name__}.{module}"), function)(
            setting, *self.arguments
        )
        return measured

    def told(self, measured: Mapping[str, Any]) -> str:
        """What was measured, for a cell of a table."""
        parts = [
            text.format(measured[key]) for key, text in self.shown.items() if measured.get(key) is not None
        ]
        parts += [f"{name} not run: {reason}" for name, reason in measured.get("not_run", {}).items()]
        return ", ".join(parts) or "passed"


class CheckFailed(Exception):
    """A bound of a check does not hold; `measured` is what was found."""

    def __init__(self, reason: str, measured: dict[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.measured = measured


@dataclass
class Outcome:
    """What a check gave in its process."""

    status: str
    reason: str
    measured: dict[str, Any] | None

    @classmethod
    def of(cls, check: Check, setting: Setting) -> Outcome:
        """Run a check. Any exception but its own two passes."""
        try:
            return cls("passed", "", check.run(setting))
        except MissingDependencyError as error:
            return cls("skipped", error.message, None)
        except CheckFailed as error:
            return cls("failed", str(error), error.measured)


PAIRED = {
    "eager": "eager {:.2f}×",
    "compiled": "compiled {:.2f}×",
    "graph": "CUDA graph {:.2f}×",
    "dense_ms": "dense eager {:.3f} ms",
}
RUNTIME = {"speedup": "{:.2f}×", "dense_ms": "dense {:.3f} ms", "parity": "parity {:.1e}"}
_LATENCY = "latency of ResNet-18 with 70 % of the MACs removed against dense, {}: eager, compiled, CUDA graph"
_RUNTIME = "ResNet-18 on {}, {}: outputs against torch; latency, compact against dense"
_TRUE = "outputs of eager, compiled and graph agree; no bound on speed"
_PARITY = "parity within the target's tolerance; no bound on speed"

_ALL = (
    Check(
        "same-draws",
        "model, dummy heads and pseudo heads are drawn alike on CPU and GPU",
        "bit-equal",
        60,
        "training:same_draws",
    ),
    Check(
        "training",
        "loss curves of CPU and GPU over 40 steps, with sparsity and dummy gradient norms",
        "every loss within 1 %",
        120,
        "training:curves",
        {"worst": "largest difference {:.1e}"},
    ),
    Check(
        "deterministic",
        "the same recipe trained twice, and once interrupted and resumed",
        "bit-equal weights",
        120,
        "training:deterministic",
        {"steps": "{} steps"},
    ),
    Check(
        "shrinking",
        "dead channels leave the network while it trains; surgery of a model on the GPU",
        "target reached; proof within its tolerance; outputs within 1e-4",
        120,
        "training:shrinking",
        {"macs_removed": "{:.1%} of the MACs", "worst": "outputs {:.1e}"},
    ),
    *(
        Check(
            f"autocast-{name}",
            f"training in {name} autocast against float32",
            "finite, mean loss within 10 %",
            90,
            "training:autocast",
            {"difference": "difference {:.1e}"},
            (name,),
        )
        for name in ("bfloat16", "float16")
    ),
    Check(
        "channels-last",
        "training in the NHWC layout against NCHW",
        "every loss within 1 %",
        90,
        "training:channels_last",
        {"worst": "largest difference {:.1e}", "speedup": "a step {:.2f}× as fast"},
    ),
    Check(
        "memory",
        "the dry run's estimate of memory against the peak of a step",
        "peak is 0.5 to 2 times the estimate",
        90,
        "training:memory",
        {"ratio": "{:.2f} times", "peak_mb": "peak {:.0f} MB"},
    ),
    Check(
        "waits",
        "waits for the GPU in a step with a group lasso, for 2 and for 16 families of channels",
        "at most 16, for both",
        90,
        "training:waits",
        {"few": "{} for 2", "many": "{} for 16", "proximal_ms": "proximal step {:.2f} ms"},
    ),
    *(
        Check(f"latency-{name}", _LATENCY.format(name), _TRUE, 150, "latency:torch_latency", PAIRED, (name,))
        for name in ("fp32", "fp16", "bf16")
    ),
    *(
        Check(
            f"{label}-{precision}",
            _RUNTIME.format(title, precision),
            _PARITY,
            150,
            "latency:runtime_latency",
            RUNTIME,
            (backend, provider, precision),
        )
        for label, title, backend, provider in (
            ("onnxruntime-cuda", "ONNX Runtime's CUDA provider", "onnxruntime", "CUDAExecutionProvider"),
            (
                "onnxruntime-tensorrt",
                "ONNX Runtime's TensorRT provider",
                "onnxruntime",
                "TensorrtExecutionProvider",
            ),
            (
                "onnxruntime-tensorrt-rtx",
                "ONNX Runtime's provider of TensorRT for RTX",
                "onnxruntime",
                "NvTensorRTRTXExecutionProvider",
            ),
            ("tensorrt", "TensorRT", "tensorrt", ""),
            ("tensorrt-rtx", "TensorRT for RTX", "tensorrt-rtx", ""),
        )
        for precision in ("fp32", "fp16")
    ),
    Check(
        "nccl",
        "balanced gradients of several tasks in a process group of one over NCCL",
        "equal to those without a group",
        90,
        "machine:process_group",
        {"worst": "largest difference {:.1e}"},
    ),
    Check(
        "pytest",
        "the tests that need a GPU: `pytest -m gpu`",
        "none fails",
        300,
        "machine:pytest_gpu",
        {"said": "{}"},
    ),
)
CHECKS: dict[str, Check] = {check.name: check for check in _ALL}
