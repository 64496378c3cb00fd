"""Who sent a request: the authenticators beside the tokens file, and how they work together.

========================  =========================================================
:mod:`.any_of`            several authenticators, one after the other
:mod:`.downloads`         who may download files
:mod:`.htpasswd`          HTTP Basic with the users of an htpasswd file
:mod:`.jwt`               bearer tokens that are JWTs
:mod:`.signed_addresses`  addresses that are their own credential
:mod:`.jwk_sets`          the keys that verify them, from a file or from a URL
========================  =========================================================
"""
