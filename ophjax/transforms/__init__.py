"""Composable transforms: pure functions that change how a step, a gradient or a parameter tree is made."""
