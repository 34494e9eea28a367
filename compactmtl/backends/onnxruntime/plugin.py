"""Execution providers of ONNX Runtime that come as packages of their own: TensorRT for RTX's registers itself when asked.

The package brings its own TensorRT for RTX and CUDA runtime, and needs neither onnxruntime-gpu nor TensorRT.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING

from compactmtl.backends.base import Availability
from compactmtl.backends.driver import cuda_device

if TYPE_CHECKING:
    import onnxruntime

RTX = "NvTensorRTRTXExecutionProvider"
PACKAGE = "onnxruntime_ep_nv_tensorrt_rtx"
PLUGINS = {RTX: PACKAGE}
# What pip installs for a bundle or kit of such a provider, the distribution whose version tells what ran first.
WHEELS = {RTX: "onnxruntime-ep-nv-tensorrt-rtx onnxruntime"}
HINT = "pip install 'compactmtl[onnxruntime-tensorrt-rtx]'"


def availability(provider: str) -> Availability:
    """Whether a provider of PLUGINS runs here: its package, a driver, a GPU that it takes; registers it.

    The driver is asked first, in a process of its own: the provider's library loads it, and a broken one may crash.
    """
    import onnxruntime

    package = PLUGINS[provider]
    if not hasattr(onnxruntime, "register_execution_provider_library"):
        return Availability(
            False,
            f"onnxruntime {onnxruntime.__version__} takes no providers from other packages",
            f"pip install 'onnxruntime>=1.24', then {HINT}",
        )
    if importlib.util.find_spec(package) is None:
        return Availability(False, f"{provider}: the package {package} is not installed", HINT)
    device, reason = cuda_device()
    if device is None:
        return Availability(
            False,
            f"{provider} needs a GPU: {reason}",
            "run it on a machine with an NVIDIA GPU and its driver",
        )
    try:
        found = devices(provider)
    except Exception as error:  # ONNX Runtime's own, and whatever loading a library raises
        said = str(error).strip().splitlines()
        return Availability(
            False,
            f"{provider} does not register: {said[0] if said else type(error).__name__}",
            "`compactmtl doctor` says which versions fit each other",
        )
    if not found:
        return Availability(
            False,
            f"{provider} takes none of this machine's devices; the first GPU is {device.name} ({device.capability})",
            "it needs an NVIDIA RTX GPU, Ampere or later",
        )
    return Availability(True)


def devices(provider: str) -> list[onnxruntime.OrtEpDevice]:
    """The devices that a provider of PLUGINS takes; registers it once. Raises what ONNX Runtime does where it can't."""
    import onnxruntime

    def known() -> list[onnxruntime.OrtEpDevice]:
        return [one for one in onnxruntime.get_ep_devices() if one.ep_name == provider]

    if found := known():
        return found
    plugin = importlib.import_module(PLUGINS[provider])
    onnxruntime.register_execution_provider_library(plugin.get_ep_name(), plugin.get_library_path())
    return known()
