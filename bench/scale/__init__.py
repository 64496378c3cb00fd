"""Measurements that depend on how much is stored, or on how many clients there are."""
