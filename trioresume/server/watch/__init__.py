"""Watching a running service: what is counted and timed, and who may look at it.

A service that is not watched uses nothing of this wing. What has to be known about requests,
operations, commits and the disk is found out by parts that ``serving`` puts in place of the
usual ones at the start (:mod:`~trioresume.server.watch.watch`), so that no request asks
whether somebody watches.
"""
