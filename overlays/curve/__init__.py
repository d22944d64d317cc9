"""Who may look in: keys, the list of those who may, and what a failed handshake means in words."""
