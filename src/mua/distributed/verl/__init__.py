"""verl on Ray: its servers sample, our episodes play, its trainer learns (docs/scale-out.md).

settings    `verl:` of a configuration
launch      a run folder → data set, agent loop and the options of verl's own `main_ppo`, and its start
agent_loop  what verl's workers load: a row of the data set → one of our episodes → verl's samples
groups      the episodes of a row played together, as `rollout` plays them
engine      verl's server client as an `Engine`
merge       verl's sharded checkpoint → a plain model folder

Invariant: verl is imported by `agent_loop` alone, in the processes of verl; `launch` and `merge` start it.
Written for verl 0.9 (V1 trainer): docs/decisions.md says which of its names are used.
"""
