"""Latency as a resource: layers are measured alone over their widths, and the network is shared out."""
