"""Which worker has which prefix in its cache: exactly, from each worker's `/events`, and at once for own placements.

keys.py          tokens -> chained block keys, the router's own
holders.py       block key -> the set of workers that hold it
mirror.py        one worker's event frames -> its blocks in that table
claims.py        whether requests find what a worker told of
prefix_index.py  match, expect, forget: what placement asks
follower.py      the open stream to each worker; the only part with I/O
"""
