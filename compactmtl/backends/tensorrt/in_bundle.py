"""The part of a bundle's infer.py that opens the model on TensorRT; memory of the GPU by the driver alone."""

import ctypes
import sys

import numpy as np
import tensorrt

TYPES = {  # by TensorRT's names
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT64": np.int64,
    "INT32": np.int32,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "BOOL": np.bool_,
}


def open_model(path, target):
    """The bundle's engine, or one built of its ONNX file, as a function of arrays by name."""
    cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")

    def call(name, *arguments):
        if code := getattr(cuda, name)(*arguments):
            raise RuntimeError(f"{name} failed with CUDA error {code}")

    device, context = ctypes.c_int(), ctypes.c_void_p()
    call("cuInit", ctypes.c_uint(0))
    call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(0))
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    call("cuCtxSetCurrent", context)
    logger, stored = tensorrt.Logger(tensorrt.Logger.ERROR), path.with_suffix(".engine")
    data = stored.read_bytes() if stored.is_file() else build(path, target, logger)
    engine = tensorrt.Runtime(logger).deserialize_cuda_engine(data)
    if engine is None:
        raise RuntimeError(
            f"{stored} is of another GPU or version of TensorRT: export the run on this machine"
        )
    running = engine.create_execution_context()
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]

    def run(inputs):
        for name, array in inputs.items():
            running.set_input_shape(name, array.shape)
        arrays = dict(inputs)
        for name in names:
            kind = TYPES[engine.get_tensor_dtype(name).name]
            arrays.setdefault(name, np.empty(tuple(running.get_tensor_shape(name)), kind))
        memory = {name: ctypes.c_uint64() for name in names}
        for name, place in memory.items():
            call("cuMemAlloc_v2", ctypes.byref(place), ctypes.c_size_t(max(arrays[name].nbytes, 1)))
            running.set_tensor_address(name, place.value)
        for name, array in inputs.items():
            call(
                "cuMemcpyHtoD_v2",
                memory[name],
                ctypes.c_void_p(array.ctypes.data),
                ctypes.c_size_t(array.nbytes),
            )
        if not running.execute_async_v3(0):
            raise RuntimeError("TensorRT could not run the engine")
        call("cuCtxSynchronize")
        outputs = {name: arrays[name] for name in names if name not in inputs}
        for name, array in outputs.items():
            call(
                "cuMemcpyDtoH_v2",
                ctypes.c_void_p(array.ctypes.data),
                memory[name],
                ctypes.c_size_t(array.nbytes),
            )
        for place in memory.values():
            call("cuMemFree_v2", place)
        return outputs

    return run


def build(path, target, logger):
    """An engine of the ONNX file, typed as the file says: float32 stays float32."""
    builder, strong = tensorrt.Builder(logger), tensorrt.NetworkDefinitionCreationFlag
    flag = getattr(strong, "STRONGLY_TYPED", None)  # the only kind of network in TensorRT 11
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        raise RuntimeError("; ".join(str(parser.get_error(index)) for index in range(parser.num_errors)))
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    if not target["tensorrt"]["tf32"]:
        config.clear_flag(tensorrt.BuilderFlag.TF32)
    for tensor in [network.get_input(index) for index in range(network.num_inputs)]:
        if -1 in tensor.shape[1:]:
            raise RuntimeError(f"{path} leaves the size of {tensor.name} free: build its engine with trtexec")
        if tensor.shape[0] == -1:
            profile.set_shape(tensor.name, *[(1, *tensor.shape[1:])] * 3)
    config.add_optimization_profile(profile)
    data = builder.build_serialized_network(network, config)
    if data is None:
        raise RuntimeError(f"TensorRT could not build an engine of {path}")
    return data
