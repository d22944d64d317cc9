"""Where explanations become pictures and leave."""
