"""What was built: the records by which an output is known to be ours and up to date. Losing them loses time only."""
