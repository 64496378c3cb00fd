"""Clients that others wrote, each put through the same trials; see ``registry``."""
