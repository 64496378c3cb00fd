"""The client: sends a request and completes it, over any number of connections.

``transfer`` and ``resuming`` decide, without I/O. ``choice`` finds out which protocol
to speak, and ``dialects`` has the fields of each protocol. ``run`` performs the
decisions, and ``exchange`` is one request on one connection. ``bodies`` and ``content``
hold the sent and the received content. ``journal`` remembers uploads across runs.
"""

from trioresume.client.bodies import (
    BodyInput,
)
from trioresume.client.choice import ProtocolName
from trioresume.client.client import Client
from trioresume.client.connector import Connector, TcpConnector
from trioresume.client.journal import Journal
from trioresume.client.messages import ClientResponse, Progress
from trioresume.client.retry import RetryPolicy
from trioresume.protocol.urls import Origin

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
