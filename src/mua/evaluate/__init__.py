"""Evaluation: playing a split, counting with honest intervals, grading stored conversations again.

Invariant: nothing here imports torch; whoever is evaluated is handed in.
"""
