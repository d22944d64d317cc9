"""Where frames become explanations; the only room that knows a device."""
