"""The one train loop, and what surrounds it: mesh, checkpoints, evaluation, logs, report."""
