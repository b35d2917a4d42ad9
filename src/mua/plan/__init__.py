"""`mua plan`: how long a training step takes, how long its devices wait, and what its users cost.

A plan is a simulation of one configuration's rollouts, event by event, on replicas and endpoints that a
few rates describe, with conversations of the lengths that were really played. Rates come from a file,
from a device's data sheet, or from a measurement of this machine.

Invariants:
- Same conversations, rates and seed: same plan.
- Everything that was assumed rather than measured or configured is listed with the plan.
"""
