"""A program as Python source with its weights, and the folder that holds them.

python.py           the model's file: class, constructor, forward, `load()`; and its safetensors file
expressions.py      one fx node as Python text
output_folder.py    the folder: written whole or not at all
"""
