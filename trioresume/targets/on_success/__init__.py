"""What happens to a file once it is stored: it is put into a directory of other programs.

``task`` is a row of the outbox: what to do, and with which file. ``directory`` puts one file
into a directory, so that a crash may come after any step. ``worker`` does this for all tasks.
"""
