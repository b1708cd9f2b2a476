"""Recipes of other tools: read into a recipe of ours, and written out of one. Nothing here opens a tensor."""
