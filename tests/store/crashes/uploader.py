"""A process that uploads and says what it may announce, for tests that kill it.

``python -m tests.store.crashes.uploader DATA_DIR SEED``: receives content that follows from
the seed, printing after each step the offset that is durable now, and ``done`` after
the content was frozen.
"""

from __future__ import annotations

import random
import sys

from trioresume.protocol.heads import Fields
from trioresume.store.disk_store import DiskStore, open_store
from trioresume.store.port import (
    CreateOperation,
    FreezeContent,
    OperationId,
    OperationRecord,
    request_key,
)

CHUNK_SIZE = 4096
LENGTH = 200_000
OP = OperationId("killed-upload")
KEY = request_key(OP)


def content(seed: int) -> bytes:
    return random.Random(seed).randbytes(LENGTH)


def say(text: object) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def upload(store: DiskStore, data: bytes) -> None:
    if store.operation(OP) is None:
        record = OperationRecord(
            id=OP,
            method="POST",
            target="/",
            fields=Fields(),
            created_at=0.0,
            expires_at=1.0,
        )
        store.apply([[CreateOperation(record)]])
    writer = store.open_writer(KEY)
    while writer.offset < len(data):
        at = writer.offset
        seals = writer.append(data[at : at + 3000])
        flush = writer.flush()
        store.apply([[seal.run() for seal in seals]])
        if flush is not None:
            store.apply([[flush.run()]])
            say(flush.offset)
    last = [seal.run() for seal in writer.finish()]
    store.apply([[*last, FreezeContent(KEY, store.sealed_content(KEY, last))]])
    say("done")


if __name__ == "__main__":
    upload(open_store(sys.argv[1], chunk_size=CHUNK_SIZE), content(int(sys.argv[2])))
