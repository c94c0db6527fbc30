"""The data that passes look at, and what the loss becomes without some units."""
