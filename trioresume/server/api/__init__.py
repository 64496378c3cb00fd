"""What an embedding program sees: the settings, the handler's request and response, tokens."""
