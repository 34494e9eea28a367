"""Ways of running an exported model, behind one protocol: torch, ONNX Runtime, OpenVINO, TensorRT."""

from __future__ import annotations

from compactmtl.backends.base import Availability, Backend, Description, LayerTime, Runner, TensorInfo
from compactmtl.errors import ConfigError

BACKENDS = (
    "onnxruntime",
    "openvino",
    "tensorrt",
    "torch",
)

__all__ = [
    "BACKENDS",
    "Availability",
    "Backend",
    "Description",
    "LayerTime",
    "Runner",
    "TensorInfo",
    "get_backend",
]


def get_backend(name: str) -> Backend:
    """The backend of that name. Raises ConfigError on a name that isn't one of BACKENDS."""
    if name == "onnxruntime":
        from compactmtl.backends.onnxruntime import OnnxRuntimeBackend

        return OnnxRuntimeBackend()
    if name == "openvino":
        from compactmtl.backends.openvino import OpenVinoBackend

        return OpenVinoBackend()
    if name == "tensorrt":
        from compactmtl.backends.tensorrt import TensorRTBackend

        return TensorRTBackend()
    if name == "torch":
        from compactmtl.backends.torch import TorchBackend

        return TorchBackend()
    raise ConfigError(f"unknown backend '{name}'", f"the backends are {', '.join(BACKENDS)}")
