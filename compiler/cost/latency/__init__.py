"""Latency as a resource: layers are measured alone over their widths, and the network's time is shared out to them.

model.py          a program's latency as a function of its widths
layers.py         layers as keys of a table, and as tiny ONNX models
grid.py           at which widths a layer is measured, and interpolation between them
table.py          measures what isn't known; cache.py keeps it on disk
attribution.py    which layer a node of the network's profile belongs to
"""
