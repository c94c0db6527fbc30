"""Commands that look into a model before anything is cut: sensitivity, rank."""
