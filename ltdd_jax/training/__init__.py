"""Supervised training: the step, the loop, losses, optimisers, metrics."""
