"""Runtimes that a program may be meant for, one file each; and the export to ONNX.

base.py            what every runtime is asked: its preferred channel counts, an export, a meter
onnxruntime.py     the one that exports and measures
coreml.py, executorch.py, litert.py, mnn.py, ncnn.py, openvino.py      channel counts alone
onnx_export.py     a program as an ONNX file, checked against the module
onnx/              the direct writer of such files, from the program's graph
ort_session.py     times of ONNX files in onnxruntime; processor.py names the CPU that they hold for
"""
