"""How a selection is found: rankings, limits, budgets, and the methods that meet them."""
