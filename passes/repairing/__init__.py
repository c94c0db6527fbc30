"""What `repair` is made of."""
