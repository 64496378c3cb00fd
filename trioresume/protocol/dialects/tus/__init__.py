"""tus 1.0.0: both sides. ``fields`` has the values that both write and read."""
