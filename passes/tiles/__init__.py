"""Tiles of weight matrices: which are there, which stay, and how those that stay fall into groups."""
