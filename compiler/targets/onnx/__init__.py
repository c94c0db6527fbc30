"""The direct writer: a program's fx graph becomes an ONNX model by tables of rows, without an export by torch.

    writer.py       walks the graph, folds constants, names inputs and outputs
    call.py         what a row is given of a call, and the tables of rows
    graph.py        the ONNX graph as it grows: nodes, initialisers, names
    sizes.py        sizes as functions of the batch
    ops/            a row for each operation; the files bear the family names of `compiler/ops`

What a row can't write exactly it declines (`call.Declined`), and the whole model is declined with it: then torch's own
exporter writes the file.
"""
