"""Runtimes, a file each, and ONNX."""
