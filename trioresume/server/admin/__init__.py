"""The admin page: what a person sees of a running service, and may change, on the second listener."""
