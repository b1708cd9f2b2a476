"""What travels with a result: the recipe beside it, the lock of its inputs, and checking both against the bytes."""
