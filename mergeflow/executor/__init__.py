"""Running a plan: devices, the loop over units, and the file that comes of it."""
