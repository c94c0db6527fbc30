"""The independent check of every rewrite. It shares nothing with the analysis that rewrites rely on."""
