"""*Resumable Uploads for HTTP* (draft-ietf-httpbis-resumable-upload): both sides.

``versions`` has the drafts' differences, as a table. ``server`` and ``client`` have
what the drafts share.
"""
