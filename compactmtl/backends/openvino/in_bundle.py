"""The part of a bundle's infer.py that opens the model on OpenVINO."""

import openvino


def open_model(path, target):
    """The model on the target's device, in its precision, as a function of arrays by name."""
    hint = {"fp16": "f16", "bf16": "bf16"}.get(target["precision"], "f32")
    config = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
    if target["device"] == "CPU":
        config["INFERENCE_NUM_THREADS"] = target["threads"]
    compiled = openvino.Core().compile_model(str(path), target["device"], config)
    names = [output.get_any_name() for output in compiled.outputs]
    return lambda inputs: dict(zip(names, compiled(inputs).values()))
