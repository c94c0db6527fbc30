"""Training: what passes do between `backward()` and `step()`, and around it."""
