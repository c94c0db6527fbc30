"""The command line.

main.py       the built-in commands
passes.py     `prunec passes`: the options of passes in words
plugins.py    commands of other packages
"""
