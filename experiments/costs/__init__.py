"""Measurements of ``bench.py`` beside a method's steps: seeds together, memory, a search, a hypernetwork."""
