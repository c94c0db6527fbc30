"""The engine of label flow: which positions of which parameters belong together. It names no operation."""
