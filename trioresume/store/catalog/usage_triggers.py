"""The accounts: how many bytes each principal uses, counted where the rows change (G7).

G7 is a statement of docs/supported-protocols.md. Triggers do the counting, in the same
transaction as the change, whatever changes the rows. The rows are summed up only once:
when a catalog from before the accounts is migrated.

* A file, and an operation that is no tombstone, are charged :data:`RECORD_SIZE` each: a
  million empty files are not free.
* The client's data in their rows beyond :data:`FREE_HEAD` bytes is charged too: the head
  of the request, the response that is kept with it, a file's name and fields. This also
  holds for a tombstone, which keeps only the request's target.
* An upload is charged its reserved bytes, from its creation to its end.
* An operation is open while its upload is received, and while it waits for its target.
* Finished content is charged its length, once for each principal who keeps it in any
  number of operations and files. Chunks that contents share are not subtracted. Otherwise
  the answer to an upload could tell a principal what others have stored.

``accounts`` has a row for each namespace, and the row ``*`` for all of them together.
"""

from __future__ import annotations

from trioresume.store.port import FREE_HEAD, RECORD_SIZE

__all__ = ["ACCOUNTS", "COUNT_RECORDS", "COUNT_WAITING", "MOVE_OPERATION"]

_OWNER = "CASE WHEN {0}.principal IS NULL THEN '' ELSE '=' || {0}.principal END"
_HELD = (
    f"(({{0}}.state != 'gone') * {RECORD_SIZE}"
    " + ({0}.state = 'receiving') * {0}.reserved)"
)


def _keep(namespace: str, digest: str) -> str:
    return (
        f"INSERT INTO kept SELECT {namespace}, digest, length, 1 FROM recipes"
        f" WHERE digest = {digest} ON CONFLICT (namespace, digest)"
        " DO UPDATE SET holds = holds + 1;"
    )


def _let_go(namespace: str, digest: str) -> str:
    at = f"namespace = {namespace} AND digest = {digest}"
    return (
        f"UPDATE kept SET holds = holds - 1 WHERE {at};"
        f" DELETE FROM kept WHERE {at} AND holds = 0;"
    )


_OLD, _NEW = _OWNER.format("OLD"), _OWNER.format("NEW")

ACCOUNTS = f"""
CREATE TABLE accounts (
    namespace TEXT PRIMARY KEY,
    bytes INTEGER NOT NULL CHECK (bytes >= 0),
    open INTEGER NOT NULL CHECK (open >= 0)
) WITHOUT ROWID;
CREATE TABLE kept (
    namespace TEXT NOT NULL,
    digest BLOB NOT NULL,
    length INTEGER NOT NULL,
    holds INTEGER NOT NULL,
    PRIMARY KEY (namespace, digest)
) WITHOUT ROWID;
ALTER TABLE operations ADD COLUMN reserved INTEGER NOT NULL DEFAULT 0;

-- Count the present rows. An upload reserves its declared length, or its bytes if more.
UPDATE operations SET reserved = max(ifnull(length, 0), ifnull(
    (SELECT max(c.durable_offset, c.prefix_bytes) FROM contents c
     WHERE c.key = operations.id), 0)) WHERE state = 'receiving';
INSERT INTO kept SELECT held.namespace, r.digest, r.length, count(*) FROM (
    SELECT {_OWNER.format("o")} AS namespace, content_digest AS digest FROM operations o
    UNION ALL SELECT {_OWNER.format("o")}, response_digest FROM operations o
    UNION ALL SELECT namespace, content_digest FROM files
) held JOIN recipes r ON r.digest = held.digest GROUP BY held.namespace, r.digest;
INSERT INTO accounts SELECT namespace, sum(bytes), sum(open) FROM (
    SELECT {_OWNER.format("o")} AS namespace, {_HELD.format("o")} AS bytes,
        o.state = 'receiving' AS open FROM operations o
    UNION ALL SELECT namespace, {RECORD_SIZE}, 0 FROM files
    UNION ALL SELECT namespace, length, 0 FROM kept
) GROUP BY namespace;
INSERT INTO accounts SELECT '*', ifnull(sum(bytes), 0), ifnull(sum(open), 0) FROM accounts;

CREATE VIEW charge AS SELECT '' AS namespace, 0 AS bytes, 0 AS open;
CREATE TRIGGER charged INSTEAD OF INSERT ON charge BEGIN
    INSERT INTO accounts VALUES (NEW.namespace, 0, 0) ON CONFLICT DO NOTHING;
    UPDATE accounts SET bytes = bytes + NEW.bytes, open = open + NEW.open
        WHERE namespace IN (NEW.namespace, '*');
    DELETE FROM accounts WHERE namespace = NEW.namespace AND bytes = 0 AND open = 0;
END;
CREATE TRIGGER kept_first AFTER INSERT ON kept BEGIN
    INSERT INTO charge VALUES (NEW.namespace, NEW.length, 0);
END;
CREATE TRIGGER kept_no_more AFTER DELETE ON kept BEGIN
    INSERT INTO charge VALUES (OLD.namespace, -OLD.length, 0);
END;
CREATE TRIGGER operation_created AFTER INSERT ON operations BEGIN
    INSERT INTO charge VALUES ({_NEW}, {_HELD.format("NEW")}, NEW.state = 'receiving');
    {_keep(_NEW, "NEW.content_digest")} {_keep(_NEW, "NEW.response_digest")}
END;
CREATE TRIGGER operation_changed AFTER UPDATE OF state, reserved ON operations
WHEN OLD.state != NEW.state OR OLD.reserved != NEW.reserved BEGIN
    INSERT INTO charge VALUES ({_NEW}, {_HELD.format("NEW")} - {_HELD.format("OLD")},
        (NEW.state = 'receiving') - (OLD.state = 'receiving'));
END;
CREATE TRIGGER operation_kept_content AFTER UPDATE OF content_digest ON operations
WHEN OLD.content_digest IS NOT NEW.content_digest BEGIN
    {_keep(_NEW, "NEW.content_digest")} {_let_go(_NEW, "OLD.content_digest")}
END;
CREATE TRIGGER operation_kept_response AFTER UPDATE OF response_digest ON operations
WHEN OLD.response_digest IS NOT NEW.response_digest BEGIN
    {_keep(_NEW, "NEW.response_digest")} {_let_go(_NEW, "OLD.response_digest")}
END;
CREATE TRIGGER operation_forgotten AFTER DELETE ON operations BEGIN
    INSERT INTO charge VALUES ({_OLD}, -{_HELD.format("OLD")}, -(OLD.state = 'receiving'));
    {_let_go(_OLD, "OLD.content_digest")} {_let_go(_OLD, "OLD.response_digest")}
END;
CREATE TRIGGER file_published AFTER INSERT ON files BEGIN
    INSERT INTO charge VALUES (NEW.namespace, {RECORD_SIZE}, 0);
    {_keep("NEW.namespace", "NEW.content_digest")}
END;
CREATE TRIGGER file_replaced AFTER UPDATE OF content_digest ON files
WHEN OLD.content_digest IS NOT NEW.content_digest BEGIN
    {_keep("NEW.namespace", "NEW.content_digest")}
    {_let_go("NEW.namespace", "OLD.content_digest")}
END;
CREATE TRIGGER file_removed AFTER DELETE ON files BEGIN
    INSERT INTO charge VALUES (OLD.namespace, -{RECORD_SIZE}, 0);
    {_let_go("OLD.namespace", "OLD.content_digest")}
END;
"""

_EXTRA = (
    "max(0, length(CAST({0}.target AS BLOB)) + length({0}.fields)"
    " + ifnull(length({0}.response_head), 0) + ifnull(length({0}.response_inline), 0)"
    f" - {FREE_HEAD})"
)
_FILE_EXTRA = (
    "max(0, length(CAST({0}.name AS BLOB)) + length({0}.fields)"
    f" + ifnull(length({{0}}.content_inline), 0) - {FREE_HEAD})"
)
_ALL_HELD = f"({_HELD} + {_EXTRA})"
_FILE_HELD = f"({RECORD_SIZE} + {_FILE_EXTRA})"

COUNT_RECORDS = f"""
DROP TRIGGER operation_created;
DROP TRIGGER operation_changed;
DROP TRIGGER operation_forgotten;
DROP TRIGGER file_published;
DROP TRIGGER file_removed;

INSERT INTO charge SELECT {_OWNER.format("o")}, {_EXTRA.format("o")}, 0
    FROM operations o WHERE {_EXTRA.format("o")} > 0;
INSERT INTO charge SELECT namespace, {_FILE_EXTRA.format("files")}, 0
    FROM files WHERE {_FILE_EXTRA.format("files")} > 0;

CREATE TRIGGER operation_created AFTER INSERT ON operations BEGIN
    INSERT INTO charge
        VALUES ({_NEW}, {_ALL_HELD.format("NEW")}, NEW.state = 'receiving');
    {_keep(_NEW, "NEW.content_digest")} {_keep(_NEW, "NEW.response_digest")}
END;
CREATE TRIGGER operation_changed
AFTER UPDATE OF state, reserved, fields, response_head, response_inline ON operations
WHEN OLD.state != NEW.state OR {_ALL_HELD.format("OLD")} != {_ALL_HELD.format("NEW")} BEGIN
    INSERT INTO charge VALUES ({_NEW},
        {_ALL_HELD.format("NEW")} - {_ALL_HELD.format("OLD")},
        (NEW.state = 'receiving') - (OLD.state = 'receiving'));
END;
CREATE TRIGGER operation_forgotten AFTER DELETE ON operations BEGIN
    INSERT INTO charge
        VALUES ({_OLD}, -{_ALL_HELD.format("OLD")}, -(OLD.state = 'receiving'));
    {_let_go(_OLD, "OLD.content_digest")} {_let_go(_OLD, "OLD.response_digest")}
END;
CREATE TRIGGER file_published AFTER INSERT ON files BEGIN
    INSERT INTO charge VALUES (NEW.namespace, {_FILE_HELD.format("NEW")}, 0);
    {_keep("NEW.namespace", "NEW.content_digest")}
END;
CREATE TRIGGER file_changed AFTER UPDATE OF fields, content_inline ON files
WHEN {_FILE_HELD.format("OLD")} != {_FILE_HELD.format("NEW")} BEGIN
    INSERT INTO charge VALUES (NEW.namespace,
        {_FILE_HELD.format("NEW")} - {_FILE_HELD.format("OLD")}, 0);
END;
CREATE TRIGGER file_removed AFTER DELETE ON files BEGIN
    INSERT INTO charge VALUES (OLD.namespace, -{_FILE_HELD.format("OLD")}, 0);
    {_let_go("OLD.namespace", "OLD.content_digest")}
END;
"""

_IS_OPEN = "({0}.state IN ('receiving', 'waiting'))"

COUNT_WAITING = f"""
DROP TRIGGER operation_created;
DROP TRIGGER operation_changed;
DROP TRIGGER operation_forgotten;

INSERT INTO charge SELECT {_OWNER.format("o")}, 0, count(*)
    FROM operations o WHERE o.state = 'waiting' GROUP BY o.principal;

CREATE TRIGGER operation_created AFTER INSERT ON operations BEGIN
    INSERT INTO charge
        VALUES ({_NEW}, {_ALL_HELD.format("NEW")}, {_IS_OPEN.format("NEW")});
    {_keep(_NEW, "NEW.content_digest")} {_keep(_NEW, "NEW.response_digest")}
END;
CREATE TRIGGER operation_changed
AFTER UPDATE OF state, reserved, fields, response_head, response_inline ON operations
WHEN OLD.state != NEW.state OR {_ALL_HELD.format("OLD")} != {_ALL_HELD.format("NEW")} BEGIN
    INSERT INTO charge VALUES ({_NEW},
        {_ALL_HELD.format("NEW")} - {_ALL_HELD.format("OLD")},
        {_IS_OPEN.format("NEW")} - {_IS_OPEN.format("OLD")});
END;
CREATE TRIGGER operation_forgotten AFTER DELETE ON operations BEGIN
    INSERT INTO charge
        VALUES ({_OLD}, -{_ALL_HELD.format("OLD")}, -{_IS_OPEN.format("OLD")});
    {_let_go(_OLD, "OLD.content_digest")} {_let_go(_OLD, "OLD.response_digest")}
END;
"""

_CHARGE = (
    f"INSERT INTO charge SELECT {_OWNER.format('o')}, :sign * {_ALL_HELD.format('o')},"
    f" :sign * {_IS_OPEN.format('o')} FROM operations o WHERE o.id = :id"
)
_KEEP_ALSO = (
    f"INSERT INTO kept SELECT {_OWNER.format('o')}, r.digest, r.length, 1"
    " FROM operations o JOIN recipes r ON r.digest = o.{0} WHERE o.id = :id"
    " ON CONFLICT (namespace, digest) DO UPDATE SET holds = holds + 1"
)
_KEPT_BY = f"""namespace = (SELECT {_OWNER.format("o")} FROM operations o WHERE o.id = :id)
    AND digest = (SELECT o.{{0}} FROM operations o WHERE o.id = :id)"""
_PARTS = ("content_digest", "response_digest")

MOVE_OPERATION: tuple[tuple[str, int], ...] = (
    (_CHARGE, -1),
    *(
        (sql.format(_KEPT_BY.format(part)), 0)
        for part in _PARTS
        for sql in (
            "UPDATE kept SET holds = holds - 1 WHERE {0}",
            "DELETE FROM kept WHERE holds = 0 AND {0}",
        )
    ),
    (
        "UPDATE operations SET principal = :principal, target = :target WHERE id = :id",
        0,
    ),
    *((_KEEP_ALSO.format(part), 0) for part in _PARTS),
    (_CHARGE, 1),
)
"""The statements that give an operation to another principal, each with a value of ``sign``.

No trigger counts this change, because it is rare: the old principal's account is relieved of
the operation, and the new one's is charged with it.
"""
