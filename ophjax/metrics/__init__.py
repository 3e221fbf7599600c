"""Metrics: per-example pairs on the device (streaming), scores of a whole split on the host (ranking)."""
