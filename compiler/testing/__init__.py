"""For those who write passes: a pytest plugin that runs text cases."""
