"""Losses: one value for each example (and region), reduced by the caller, once."""
