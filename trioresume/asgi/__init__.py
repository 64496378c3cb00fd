"""trioresume as an ASGI application: served by any ASGI server, or mounted in a project.

The engine runs on trio. On a server that runs on trio, such as hypercorn's trio worker, it
runs in the server's own loop. On an asyncio server it runs in a thread of its own, because
that costs less than trio as a guest of asyncio's loop, and because it needs nothing of the
project it is mounted in (see docs/howto/asgi-app.md).

:func:`serve` is :func:`trioresume.serve` with hypercorn for HTTP, which adds HTTP/3.
"""

from trioresume.asgi.app import App
from trioresume.asgi.hypercorn_front import serve

__all__ = ["App", "serve"]
