"""What an expression means: exact numbers, a graph of model operations, and the normal form of each tensor."""
