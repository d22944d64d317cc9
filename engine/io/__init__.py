"""Files written atomically, and metadata read with validation."""
