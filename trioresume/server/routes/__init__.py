"""From a request's head to the code that answers it."""
