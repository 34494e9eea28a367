"""The TensorRT backend: building, keeping and running engines."""
