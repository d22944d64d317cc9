"""Events: what happened at a camera, when, with its evidence and what was done about it."""
