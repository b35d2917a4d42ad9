"""A campaign that tries to break mua, for its developers and for whoever trains on an own domain.

    python -m mua.testing chaos     whole training runs with faults everywhere, by a plan in YAML with a seed
    python -m mua.testing fuzz      hostile model output and input
    python -m mua.testing states    random calls against every domain: isolation, equality, replay, reward
    python -m mua.testing soak      episodes for an hour: memory, processes, files, sockets

Each leaves a JSON of what was tried and what was found, and fails when a promise of docs/reliability.md was
broken. Nothing else in mua imports this package.
"""
