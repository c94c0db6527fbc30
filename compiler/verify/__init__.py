"""The independent check of every rewrite. It shares nothing with the analysis that rewrites rely on.

verify.py         the check: a rewritten program against its reference, on random inputs
reference.py      the reference: the old program, with other values or with removed channels masked where asked for
interpreter.py    runs a graph node by node
masks.py          marks: which elements of a value are removed
table.py, ops/    what each operation does to marks
given_products.py runs for further batch sizes, in which no product is computed
compare.py        how far two values are apart
blame.py          the first node that differs, for the error message
variants.py       many sets of masked channels on the same inputs, for criteria and sensitivity
"""
