"""What the model is for, said once in a plan: the loss that its training went by, and the metric that it is judged by.

outputs.py    which outputs are judged, and with which labels
losses.py     losses by name, and those of a user
metrics.py    metrics by name, those of torchmetrics, and those of a user
"""
