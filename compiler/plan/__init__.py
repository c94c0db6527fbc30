"""What a plan file may say, and how it is read and checked.

source.py     the text as plain values, each with its place
schema.py     the parts of a plan: factories, paths, inputs, exports
options.py    types of options, and error messages in the plan's own words
plan.py       the plan: its parts, and its passes
"""
