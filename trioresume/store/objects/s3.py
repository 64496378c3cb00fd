"""Objects in an S3-compatible store, through obstore.

What can go wrong, and what is done about it
============================================

* *412 Precondition Failed* for a put with ``If-None-Match: *``: the object is there. It has the
  bytes that were to be put, because its name is their digest.
* *409 Conflict*: another put of the same name was under way. Nothing was put; try again. Then
  the answer is a 412, or the put succeeds.
* *503 SlowDown*, other 5xx, *429*, and no answer at all: try again, after a pause with jitter,
  so that the nodes which were refused together do not come back together. A put whose answer
  was lost is repeated; the repetition meets the object, or puts it again with the same bytes.
* *404* of a put: there is no such bucket. *401* and *403*: wrong credentials, or a policy. These
  are errors at once, with what to look at.
* Bytes that changed on their way: each put carries a checksum that the store verifies. The
  store refuses the put (400), which is tried again once: the network may have been the cause.

The pauses and attempts of one call end after *patience* seconds. The attempt that runs then may
take *request_timeout* more.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import obstore
from obstore import exceptions as obstore_errors
from obstore.store import S3Store

from trioresume.errors import StorageError, StorageUnavailable
from trioresume.store.objects.address import ObjectsAddress
from trioresume.store.objects.bucket import ListedObject

if TYPE_CHECKING:
    from obstore.store import ClientConfig, S3Config

__all__ = ["PATIENCE", "REQUEST_TIMEOUT", "S3Bucket"]

T = TypeVar("T")

PATIENCE = 20.0
"""Seconds in which a call tries again."""
REQUEST_TIMEOUT = 60.0
"""Seconds that one request may take: a chunk of 8 MiB arrives at 140 kB/s."""
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0

_STATUS = re.compile(r"non-2xx status code: (\d{3})")
_CODE = re.compile(r"<Code>([A-Za-z]+)</Code>")
_AGAIN = (408, 409, 425, 429)


class S3Bucket:
    """See :class:`~.bucket.Bucket`. Threads: any; the calls release the interpreter's lock."""

    def __init__(
        self,
        address: ObjectsAddress,
        *,
        patience: float = PATIENCE,
        request_timeout: float = REQUEST_TIMEOUT,
        options: S3Config | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.address = address
        self._patience = patience
        self._sleep = sleep
        config: S3Config = {
            "virtual_hosted_style_request": address.virtual_host,
            # The checksum covers the content, so the signature need not: that would be one
            # more hash, of every byte.
            **(
                {"checksum_algorithm": "CRC64NVME", "unsigned_payload": True}
                if address.checksum == "crc64nvme"
                else {"checksum_algorithm": "SHA256"}
            ),
        }
        if address.region is not None:
            config["region"] = address.region
        if address.endpoint is not None:
            config["endpoint"] = address.endpoint
        config.update(options or {})
        client: ClientConfig = {
            "timeout": timedelta(seconds=request_timeout),
            "connect_timeout": timedelta(seconds=5),
            "allow_http": (address.endpoint or "").startswith("http://"),
        }
        self.store = S3Store(
            address.bucket,
            prefix=address.prefix or None,
            config=config,
            client_options=client,
            retry_config={"max_retries": 0},  # see _try
        )

    def put_absent(self, name: str, data: memoryview | bytes) -> bool:
        def put() -> bool:
            try:
                obstore.put(self.store, name, data, mode="create", use_multipart=False)
            except obstore_errors.AlreadyExistsError as exc:
                if _status(exc) == 409:
                    raise  # obstore calls this the same, but nothing may be there yet
                return False
            return True

        return self._try(put, f"putting {name}")

    def put(self, name: str, data: memoryview | bytes) -> None:
        self._try(
            lambda: obstore.put(self.store, name, data, use_multipart=False),
            f"putting {name}",
        )

    def get(self, name: str, start: int, length: int) -> bytes | None:
        if not length:
            return b""

        def get() -> bytes | None:
            try:
                found = obstore.get_range(self.store, name, start=start, length=length)
            except FileNotFoundError as exc:
                if _code(exc) == "NoSuchBucket":
                    raise
                return None
            except obstore_errors.GenericError as exc:
                if _status(exc) == 416:
                    return b""
                raise
            return found.to_bytes()

        return self._try(get, f"getting {name}")

    def delete(self, names: Sequence[str]) -> None:
        def delete(batch: list[str]) -> None:
            try:
                obstore.delete(self.store, batch)
            except FileNotFoundError as exc:
                if _code(exc) == "NoSuchBucket":
                    raise

        for at in range(0, len(names), 1000):
            batch = list(names[at : at + 1000])
            self._try(lambda b=batch: delete(b), "deleting objects")  # type: ignore[misc]

    def list(self, prefix: str, after: str, limit: int) -> list[ListedObject]:
        def look() -> list[ListedObject]:
            stream = obstore.list(
                self.store, prefix, offset=after or None, chunk_size=limit
            )
            return [
                ListedObject(
                    each["path"], each["size"], each["last_modified"].timestamp()
                )
                for each in next(iter(stream), [])
            ][:limit]

        return self._try(look, f"listing {prefix}")

    def sign(self, name: str, seconds: float, method: str = "GET") -> str:
        """Return an address with which anybody may make the request, for so long."""
        signed: str = obstore.sign(
            self.store,
            "GET" if method == "GET" else "PUT",
            name,
            timedelta(seconds=seconds),
        )
        return signed

    def close(self) -> None:
        """Do nothing: the connections are closed with the last reference."""

    def _try(self, call: Callable[[], T], doing: str) -> T:
        deadline = time.monotonic() + self._patience
        pause, has_mangled = _FIRST_PAUSE, False
        while True:
            try:
                return call()
            except FileNotFoundError as exc:
                raise StorageError(
                    f"{doing}: there is no bucket {self.address.bucket}"
                ) from exc
            except obstore_errors.BaseError as exc:
                status, code = _status(exc), _code(exc)
                is_mangled = code in ("BadDigest", "XAmzContentSHA256Mismatch")
                again = status is None or status >= 500 or status in _AGAIN
                if isinstance(exc, obstore_errors.PermissionDeniedError):
                    raise StorageError(
                        f"{doing}: {self.address} refuses it ({code or 'access denied'});"
                        " look at the credentials and at the bucket's policy"
                    ) from exc
                if isinstance(exc, obstore_errors.UnauthenticatedError):
                    raise StorageError(
                        f"{doing}: {self.address} does not know these credentials"
                    ) from exc
                if not again and (has_mangled or not is_mangled):
                    raise StorageError(f"{doing}: {_told(exc)}") from exc
                has_mangled = has_mangled or is_mangled
                wait = random.uniform(pause / 2, pause)
                if time.monotonic() + wait > deadline:
                    raise StorageUnavailable(f"{doing}: {_told(exc)}") from exc
            self._sleep(wait)
            pause = min(2 * pause, _LONGEST_PAUSE)


def _status(exc: Exception) -> int | None:
    """Return the status of the answer; None if there was none."""
    found = _STATUS.search(str(exc))
    return None if found is None else int(found[1])


def _code(exc: Exception) -> str | None:
    """Return S3's code of the error."""
    found = _CODE.search(str(exc))
    return None if found is None else found[1]


def _told(exc: Exception) -> str:
    """Return what happened, in one line."""
    status, code = _status(exc), _code(exc)
    if status is not None:
        return f"the object store answers {status}" + (f" ({code})" if code else "")
    said = str(exc).partition("\n")[0].rpartition(" - ")[2]
    return f"the object store cannot be reached: {said}"
