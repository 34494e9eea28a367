"""The part of a bundle's infer.py that opens the model on a provider of ONNX Runtime which is a package of its own."""

import onnxruntime
import onnxruntime_ep_nv_tensorrt_rtx as plugin


def open_model(path, target):
    """The model on the target's provider, as a function of arrays by name."""
    options, provider = onnxruntime.SessionOptions(), target["provider"]
    options.add_session_config_entry(
        "session.disable_cpu_ep_fallback", "1"
    )  # else nodes would move to the CPU
    onnxruntime.register_execution_provider_library(plugin.get_ep_name(), plugin.get_library_path())
    devices = [one for one in onnxruntime.get_ep_devices() if one.ep_name == provider]
    if not devices:
        raise RuntimeError(f"{provider} finds no GPU that it takes")
    options.add_provider_for_devices(devices, {})
    session = onnxruntime.InferenceSession(str(path), options)
    if session.get_providers()[0] != provider:
        raise RuntimeError(f"there is no {provider}, only {', '.join(session.get_providers())}")
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs)))
