"""The data that passes look at: samples in pieces that memory holds, and the loss without some units.

calibration.py    samples, and by which loss
trials.py         loss and accuracy with sets of units masked
"""
