"""A program as Python source and weights, and the folder that holds them."""
