"""Programs that do the trials, each with one client library; see ``registry``."""
