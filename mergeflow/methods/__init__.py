"""The vocabulary of merging: each method is one formula with one citation, found by name in the registry."""
