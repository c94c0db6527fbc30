"""Units that give a constant whatever the input: found from the weights, and taken into what reads them."""
