"""Our episodes as environments of other trainers: verifiers, OpenEnv, Gymnasium, TRL.

Invariant: an export drives `episode.play` or `rollout.play_groups` and adds nothing to them. The same task,
user, seed and moves of the agent end in the same state with the same reward as an episode of our own.
"""
