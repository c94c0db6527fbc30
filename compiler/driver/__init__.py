"""From a plan and a model to a result: loading, the pass manager, the lock, measurements, regions."""
