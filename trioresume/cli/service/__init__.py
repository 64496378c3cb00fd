"""What ``trioresume serve`` owes to the system that runs it: signals, log files, systemd."""
