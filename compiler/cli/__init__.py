"""The command line.

main.py       the built-in commands
target.py     what MODEL|PLAN names; python_file.py: what a file of Python defines
passes.py     `prunec passes`: the options of passes in words
plugins.py    commands of other packages
"""
