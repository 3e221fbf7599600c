"""Networks. The only package that imports Flax modules."""
