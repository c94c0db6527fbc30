"""Commands that look into a model before anything is cut.

sensitivity.py    the metric against the share that each group alone loses
rank.py           how well criteria order units, beside what the loss really does
subject.py        the program, the data and the scores that a plan gives a command
run.py            the commands' work; commands.py how typer reads them; tables.py, pictures.py their results
"""
