"""Content: what a request sends (``sources``), and what its response brings.

A source can be read again from an offset: ``file_source`` a file, ``window`` the latest
bytes of content that cannot be read twice. ``response_content`` collects a response's
content in memory or in a file.
"""
