"""Events of cameras with their evidence: observation, storage, queries and webhooks."""
