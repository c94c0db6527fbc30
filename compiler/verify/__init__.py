"""The independent check of every rewrite. It shares nothing with the analysis that rewrites rely on.

verify.py            the check: a rewritten program against its reference, on random inputs
reference.py         the reference: the old program, with other values or with removed channels masked where asked for
interpreter.py       runs a graph node by node
masks.py             marks: which elements of a value are removed
table.py, ops/       what each operation does to marks
products.py          which layers are products, norms and activations: they do the same to each sample
sampled_products.py  runs of a first batch in which the old program computes few rows of costly products
given_products.py    runs for further batch sizes, in which neither program computes any
compare.py           how far two values are apart
blame.py             the first node that differs, for the error message
variants.py          many sets of masked channels on the same inputs, for criteria and sensitivity
"""
