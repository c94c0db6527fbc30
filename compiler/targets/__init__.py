"""Runtimes that a program may be meant for, one file each: how its files are made there, and how they are run.

base.py            what every runtime is asked: its preferred channel counts, conversion, execution, a meter
exporting.py       what is the same for all: parity with the module, latency, sizes, failures
onnx_file.py, ort.py, openvino.py, mnn.py            those that export, by way of ONNX
coreml.py, executorch.py, litert.py, ncnn.py         those that export, from what torch exports or traces
torch.py           channel counts alone
onnxruntime.py     executes ONNX and ORT files, and measures
sources.py         what converters read: a program as torch.export or ONNX has it, at a batch size, cut short
flat.py            a program as a module of plain tensors
child.py           runs in a process of its own what may crash: mnn_convert.py, mnn_session.py, ncnn_session.py
captured.py        holds back what converters print; interleaved.py takes times in turns
onnx_export.py     a program as an ONNX file, checked against the module; ort_int8.py makes it int8
onnx/              the direct writer of such files, from the program's graph
ort_session.py     times of ONNX files in onnxruntime; processor.py names the CPU that they hold for
"""
