"""Ways to wait and to take turns in the event loop."""
