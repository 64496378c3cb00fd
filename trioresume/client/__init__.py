"""The client: sends a request and sees it through, over any number of connections.

``transfer`` decides (no I/O) with ``resuming``, ``choice`` finds out which protocol to
speak, ``dialects`` have its words; ``run`` performs, ``exchange`` is one request on one
connection, ``bodies`` and ``content`` hold what is sent and received, ``journal``
remembers across runs.
"""

from trioresume.client.bodies import (
    BodyInput,
)
from trioresume.client.choice import ProtocolName
from trioresume.client.client import Client
from trioresume.client.connector import Connector, TcpConnector
from trioresume.client.journal import Journal
from trioresume.client.locations import Origin
from trioresume.client.messages import ClientResponse, Progress
from trioresume.client.retry import RetryPolicy

__all__ = [
    "BodyInput",
    "Client",
    "ClientResponse",
    "Connector",
    "Journal",
    "Origin",
    "Progress",
    "ProtocolName",
    "RetryPolicy",
    "TcpConnector",
]
