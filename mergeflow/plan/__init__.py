"""From what a recipe says to the work it takes: pure functions of facts. No tensor is opened and torch not imported."""
