"""The verifier's own account of the operations; its files bear the names of those in `compiler/ops`."""
