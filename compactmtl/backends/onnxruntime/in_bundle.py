"""The part of a bundle's infer.py that opens the model on ONNX Runtime."""

import onnxruntime


def open_model(path, target):
    """The model with the target's provider and threads, as a function of arrays by name."""
    options, provider = onnxruntime.SessionOptions(), target["provider"]
    options.intra_op_num_threads = target["threads"]
    if provider != "CPUExecutionProvider":  # else nodes would move to the CPU, and nothing would say so
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    settings = {"use_tf32": "0"} if provider == "CUDAExecutionProvider" else {}  # float32 is float32
    session = onnxruntime.InferenceSession(str(path), options, providers=[(provider, settings)])
    if session.get_providers()[0] != provider:
        raise RuntimeError(f"there is no {provider}, only {', '.join(session.get_providers())}")
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs)))
