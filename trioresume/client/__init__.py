"""The client: sends a request and completes it, over any number of connections.

Three wings, each built on those before it::

    decisions    without I/O: what to do next, which protocol to speak, what to believe
    content      what a request sends, and what its response brings
    http         connections, requests, and one round trip of both

``client`` is what a program uses, ``blocking`` what a script uses. ``runner`` performs the decisions of one request, and
``journal`` remembers uploads across runs. The fields of each protocol are in
:mod:`trioresume.protocol.dialects`.
"""

from trioresume.client.blocking import upload
from trioresume.client.client import Client
from trioresume.client.content.sources import BodyInput
from trioresume.client.decisions.protocol_choice import ProtocolName
from trioresume.client.decisions.retry import RetryPolicy
from trioresume.client.http.connector import Connector, NetworkConnector, Route
from trioresume.client.http.tls import ClientTls
from trioresume.client.journal import Journal, RememberedUpload
from trioresume.client.progress import ProcessingProgress, Progress
from trioresume.client.response import ClientResponse
from trioresume.protocol.urls import Origin

__all__ = [
    "BodyInput",
    "Client",
    "ClientResponse",
    "ClientTls",
    "Connector",
    "Journal",
    "NetworkConnector",
    "Origin",
    "ProcessingProgress",
    "Progress",
    "ProtocolName",
    "RememberedUpload",
    "RetryPolicy",
    "Route",
    "upload",
]
