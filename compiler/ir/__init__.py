"""A program as a value, and what can be asked of its graph."""
