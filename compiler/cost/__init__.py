"""What a program costs, as functions of its widths: MACs, parameters, memory, file size, latency."""
