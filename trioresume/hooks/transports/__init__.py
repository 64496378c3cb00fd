"""How receivers are called: over HTTP, as an executable, as a Python function."""
