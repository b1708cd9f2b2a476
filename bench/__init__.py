"""Measures mergeflow against the floor that a machine sets and against its peers: `python -m bench.run`."""
