"""What `repeat` is made of: how much each round may leave, and what the metric may not fall below."""
