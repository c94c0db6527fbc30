"""What a program costs, as functions of its widths: MACs, parameters, memory, file size, latency.

model.py        MACs, parameters and memory, in closed form
resource.py     the contract of a resource: what a budget can be set for
resources.py    the resources that there are
latency/        seconds in a runtime, read off measured tables
"""
