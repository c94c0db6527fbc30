"""How a selection is found: in which order units go, what keeps them, and how far each group is cut.

ranking.py, queues.py       units in the order in which they go; a selection is a level for each queue
limits.py                   constraints: protect, keep_at_least, multiple_of, ...
per_group.py, curves.py     ways that look at each group alone: ratios, widths, thresholds, sensitivity curves
budgets.py, problems.py     budgets over all groups; amounts.py how a plan writes them
selectors.py                methods that meet budgets: ranking, greedy.py, knapsack.py, exchange.py
"""
