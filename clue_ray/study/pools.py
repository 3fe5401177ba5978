"""Which nodes of a cluster do what: corpora are prepared in its data pool, and runs of each kind fill its slots.

A data pool is made of nodes labelled `pool: data`. Where a cluster has one, Ray Data reads logs and finds texts there
alone, so as not to take the cores of those who train. The shuffle that gathers users keeps to no label in Ray 2.60: its
tasks run wherever a core is free.
"""
