"""Our episodes on other people's trainers, beyond one machine.

Invariant: the same task, seed, user and sampled tokens give the same episode and reward as on one machine.
"""
