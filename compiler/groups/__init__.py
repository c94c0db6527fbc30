"""Labels solved into units and groups, and the dependency graph."""
