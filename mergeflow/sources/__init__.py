"""From a path in a recipe to a known file: its header, its digests and its facts, remembered per machine."""
