"""The store as async code sees it: worker threads, group commit, receive memory."""
