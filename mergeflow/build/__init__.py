"""The front door: wires recipe, sources, plan, executor and records together, and decides nothing itself."""
