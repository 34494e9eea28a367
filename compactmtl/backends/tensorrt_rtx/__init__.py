"""The TensorRT for RTX backend: engines for a list of compute capabilities, built on any machine."""
