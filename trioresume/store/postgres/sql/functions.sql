-- The functions of the catalog. The service makes them anew at each migration.
--
-- apply() performs a batch in one statement, so in one round trip and one transaction. All
-- locks of rows that several nodes may want come first, and in one order: operations, names
-- of files, chunks. What comes later (recipes, kept) may rarely close a circle; PostgreSQL
-- then ends one of the transactions, and the node tries it again.
--
-- The transactions are READ COMMITTED: each statement sees what was committed before it, and
-- a row that is locked is read again after the wait. Nothing here decides by a row that it
-- has not locked, except where the comment says why it may.
--
-- Error codes: TR001 a conflict, TR002 a change by a node that is not the owner, TR003 the
-- node has ended, TR004 a limit of usage.

-- Nodes -------------------------------------------------------------------------------

CREATE FUNCTION is_alive(which bigint) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT 1 FROM nodes WHERE node = which AND NOT ended)
$$;

CREATE FUNCTION check_alive(me bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF NOT is_alive(me) THEN
        RAISE EXCEPTION USING ERRCODE = 'TR003', MESSAGE = 'this node was taken for dead';
    END IF;
END $$;

CREATE FUNCTION note(whom bigint, message text) RETURNS void LANGUAGE sql AS $$
    SELECT pg_notify(current_schema() || ':' || whom, message)
$$;

-- Recipes and chunks ------------------------------------------------------------------

CREATE FUNCTION conflict(reason text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'TR001', MESSAGE = reason;
END $$;

-- Release one hold on each chunk for every time it is listed.
CREATE FUNCTION unhold_chunks(listed bytea[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF listed IS NULL OR cardinality(listed) = 0 THEN
        RETURN;
    END IF;
    PERFORM 1 FROM chunks WHERE digest = ANY (listed) ORDER BY digest FOR NO KEY UPDATE;
    UPDATE chunks c SET refs = c.refs - u.n
        FROM (SELECT d, count(*) AS n FROM unnest(listed) d GROUP BY d) u
        WHERE c.digest = u.d;
END $$;

CREATE FUNCTION unhold_recipes(listed bytea[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF listed IS NULL OR cardinality(listed) = 0 THEN
        RETURN;
    END IF;
    PERFORM 1 FROM recipes WHERE digest = ANY (listed) ORDER BY digest FOR NO KEY UPDATE;
    UPDATE recipes r SET refs = r.refs - u.n
        FROM (SELECT d, count(*) AS n FROM unnest(listed) d GROUP BY d) u
        WHERE r.digest = u.d;
END $$;

-- Have the catalog keep a recipe. Returns n: the recipe lacks holds on its first n entries.
CREATE FUNCTION keep_recipe(recipe jsonb, is_joined boolean, more bigint)
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    name bytea := decode(recipe->>'d', 'hex');
    done bigint;
BEGIN
    LOOP
        INSERT INTO recipes (digest, length, chunk_count, refs, joined, body) VALUES (
            name, (recipe->>'l')::bigint, (recipe->>'n')::bigint, more, is_joined,
            decode(recipe->>'b', 'hex')
        ) ON CONFLICT (digest) DO NOTHING;
        IF FOUND THEN
            RETURN (recipe->>'n')::bigint;
        END IF;
        SELECT dismantled INTO done FROM recipes WHERE digest = name FOR NO KEY UPDATE;
        EXIT WHEN FOUND;  -- else it was collected between the two statements
    END LOOP;
    IF done > 0 OR more > 0 THEN
        UPDATE recipes SET dismantled = 0, refs = refs + more WHERE digest = name;
    END IF;
    RETURN done;
END $$;

CREATE FUNCTION hold_content(name bytea) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF name IS NULL THEN
        RETURN;
    END IF;
    UPDATE recipes SET refs = refs + 1 WHERE digest = name AND dismantled = 0;
    IF NOT FOUND THEN
        PERFORM conflict('the content was deleted meanwhile');
    END IF;
END $$;

CREATE FUNCTION release_content(name bytea) RETURNS void LANGUAGE sql AS $$
    UPDATE recipes SET refs = refs - 1 WHERE digest = name
$$;

-- Name a chunk once more. A node names a chunk for the first time only while it holds it.
CREATE FUNCTION take_chunk(me bigint, name bytea, size bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE chunks c SET refs = c.refs + 1, length = size WHERE c.digest = name AND (c.refs > 0
        OR EXISTS (SELECT 1 FROM holds h WHERE h.digest = name AND h.node = me));
    IF NOT FOUND THEN
        PERFORM conflict('the chunk is held no longer; store it again');
    END IF;
END $$;

-- Content under construction ------------------------------------------------------------

-- The parts of a tail are [name, offset, length]. A part that is dropped is deleted later.
CREATE FUNCTION retire(objects jsonb) RETURNS void LANGUAGE sql AS $$
    INSERT INTO dropped_parts (name)
        SELECT o->>0 FROM jsonb_array_elements(objects) o ON CONFLICT DO NOTHING
$$;

-- Clear at most `most` pieces and parts of a content, then its row. Returns how many.
CREATE FUNCTION release_pieces(which bigint, moved bigint, most bigint)
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    listed bytea[];
    cleared bigint;
    more bigint;
BEGIN
    WITH gone AS (
        DELETE FROM pieces WHERE cid = which AND idx IN (
            SELECT idx FROM pieces WHERE cid = which ORDER BY idx LIMIT most
        ) RETURNING idx, digest
    ) SELECT count(*), array_agg(digest) FILTER (WHERE idx >= moved)
        INTO cleared, listed FROM gone;
    PERFORM unhold_chunks(listed);
    WITH gone AS (
        DELETE FROM parts WHERE cid = which AND idx IN (
            SELECT idx FROM parts WHERE cid = which ORDER BY idx LIMIT most - cleared
        ) RETURNING digest
    ) SELECT count(*), array_agg(digest) INTO more, listed FROM gone;
    PERFORM unhold_recipes(listed);
    IF cleared + more < most THEN
        DELETE FROM contents WHERE cid = which;
    END IF;
    RETURN cleared + more;
END $$;

CREATE FUNCTION detach(which bigint, moved bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF release_pieces(which, moved, 64) = 64 THEN
        UPDATE contents SET key = NULL, moved_below = moved WHERE cid = which;
    END IF;
END $$;

CREATE FUNCTION drop_content(which text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    c contents;
BEGIN
    SELECT * INTO c FROM contents WHERE key = which FOR UPDATE;
    IF FOUND THEN
        PERFORM retire(c.tail);
        PERFORM detach(c.cid, 0);
    END IF;
END $$;

-- Whether a response may still begin: the first seal of its key makes its row.
CREATE FUNCTION may_respond(which text) RETURNS boolean LANGUAGE sql AS $$
    SELECT which LIKE '%.r' AND EXISTS (
        SELECT 1 FROM operations WHERE id = left(which, -2) AND state NOT IN ('gone', 'done'))
$$;

CREATE FUNCTION content_of(which text, size bigint, may_begin boolean)
RETURNS contents LANGUAGE plpgsql AS $$
DECLARE
    c contents;
BEGIN
    SELECT * INTO c FROM contents WHERE key = which FOR UPDATE;
    IF NOT FOUND AND may_begin AND may_respond(which) THEN
        INSERT INTO contents (key, chunk_size) VALUES (which, size) RETURNING * INTO c;
    END IF;
    RETURN c;
END $$;

-- Set the tail of a content, and drop what lies below the sealed chunks.
CREATE FUNCTION with_tail(c contents, objects jsonb) RETURNS contents LANGUAGE plpgsql AS $$
DECLARE
    kept_parts jsonb;
BEGIN
    IF objects = '[]' AND c.tail = '[]' THEN
        RETURN c;
    END IF;
    SELECT coalesce(jsonb_agg(o), '[]') INTO kept_parts FROM jsonb_array_elements(objects) o
        WHERE (o->>1)::bigint + (o->>2)::bigint > c.prefix_bytes;
    PERFORM retire((
        SELECT coalesce(jsonb_agg(o), '[]') FROM jsonb_array_elements(c.tail || objects) o
        WHERE NOT EXISTS (
            SELECT 1 FROM jsonb_array_elements(kept_parts) k WHERE k->>0 = o->>0)));
    c.tail := kept_parts;
    RETURN c;
END $$;

CREATE FUNCTION seal(
    me bigint, which text, at bigint, name bytea, size bigint, chunk_size bigint)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    c contents := content_of(which, chunk_size, true);
    next bigint;
BEGIN
    IF c.cid IS NULL OR at < c.prefix THEN
        RETURN;  -- it has ended, or the chunk is sealed already
    END IF;
    IF at > c.prefix AND EXISTS (SELECT 1 FROM pieces WHERE cid = c.cid AND idx = at) THEN
        RETURN;
    END IF;
    PERFORM take_chunk(me, name, size);
    INSERT INTO pieces VALUES (c.cid, at, name, size);
    IF at > c.prefix THEN
        RETURN;
    END IF;
    next := size;
    LOOP
        c.prefix := c.prefix + 1;
        c.prefix_bytes := c.prefix_bytes + next;
        SELECT length INTO next FROM pieces WHERE cid = c.cid AND idx = c.prefix;
        EXIT WHEN NOT FOUND;
    END LOOP;
    c := with_tail(c, c.tail);
    UPDATE contents SET prefix = c.prefix, prefix_bytes = c.prefix_bytes, tail = c.tail
        WHERE cid = c.cid;
END $$;

CREATE FUNCTION record_tail(which text, reached bigint, objects jsonb)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    c contents;
BEGIN
    SELECT * INTO c FROM contents WHERE key = which FOR UPDATE;
    IF NOT FOUND OR which LIKE '%.r' OR reached < c.durable_offset THEN
        -- A later record may have kept some of these parts.
        PERFORM retire((
            SELECT coalesce(jsonb_agg(o), '[]') FROM jsonb_array_elements(objects) o
            WHERE c.tail IS NULL OR NOT EXISTS (
                SELECT 1 FROM jsonb_array_elements(c.tail) k WHERE k->>0 = o->>0)));
        RETURN;
    END IF;
    c := with_tail(c, objects);
    UPDATE contents SET durable_offset = reached, tail = c.tail WHERE cid = c.cid;
END $$;

CREATE FUNCTION entries(recipe jsonb) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
    SELECT right_bytes FROM (SELECT decode(recipe->>'b', 'hex') AS b) x,
        LATERAL (SELECT substring(
            b FROM octet_length(b) - 34 * (recipe->>'n')::int + 1) AS right_bytes) y
$$;

-- Make the pieces that a recipe lists a part.
CREATE FUNCTION add_part(which bigint, at bigint, first bigint, recipe jsonb)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    moved bigint := keep_recipe(recipe, false, 1);
    listed bytea[];
BEGIN
    WITH gone AS (
        DELETE FROM pieces
            WHERE cid = which AND idx >= first AND idx < first + (recipe->>'n')::bigint
            RETURNING idx, digest
    ) SELECT array_agg(digest) FILTER (WHERE idx >= first + moved) INTO listed FROM gone;
    PERFORM unhold_chunks(listed);
    INSERT INTO parts VALUES (which, at, decode(recipe->>'d', 'hex'));
END $$;

CREATE FUNCTION freeze(m jsonb, size bigint, part bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    which text := m->>'key';
    whole bigint := (m->>'length')::bigint;
    c contents := content_of(which, size, whole = 0);
    name bytea := decode(m->>'digest', 'hex');
    recipe jsonb;
    found bytea;
    given bytea := '';
    at bigint;
    moved bigint;
    pieces_left bigint;
BEGIN
    IF c.cid IS NULL THEN
        RETURN;  -- the operation has ended meanwhile
    END IF;
    IF name IS NULL OR c.prefix_bytes <> whole OR c.parts <> (m->>'parts')::bigint THEN
        PERFORM conflict('the content''s chunks changed before it was frozen; finish it again');
    END IF;
    FOR recipe IN SELECT * FROM jsonb_array_elements(m->'rest') LOOP
        given := given || entries(recipe);
    END LOOP;
    SELECT coalesce(string_agg(digest, ''::bytea ORDER BY idx), '') INTO found FROM pieces
        WHERE cid = c.cid AND idx >= c.parts * part AND idx < c.prefix;
    IF found <> given THEN
        PERFORM conflict('the content''s chunks changed before it was frozen; finish it again');
    END IF;
    PERFORM retire(c.tail);
    IF c.parts = 0 AND jsonb_typeof(m->'joined') = 'null' THEN
        moved := keep_recipe(m->'rest'->0, false, 0);
        SELECT count(*) INTO pieces_left FROM pieces WHERE cid = c.cid;
        IF pieces_left <= part THEN
            PERFORM unhold_chunks((
                SELECT array_agg(digest) FROM pieces WHERE cid = c.cid AND idx >= moved));
            DELETE FROM pieces WHERE cid = c.cid;
            DELETE FROM contents WHERE cid = c.cid;
        ELSE
            PERFORM detach(c.cid, moved);
        END IF;
    ELSE
        at := c.parts;
        FOR recipe IN SELECT * FROM jsonb_array_elements(m->'rest') LOOP
            PERFORM add_part(c.cid, at, at * part, recipe);
            at := at + 1;
        END LOOP;
        SELECT string_agg(digest, ''::bytea ORDER BY idx) INTO found FROM parts
            WHERE cid = c.cid;
        IF jsonb_typeof(m->'joined') = 'null' THEN
            given := name;
            moved := 0;
        ELSE
            given := entries(m->'joined');
            moved := keep_recipe(m->'joined', true, 0);
        END IF;
        IF found <> given THEN
            PERFORM conflict(
                'the content''s chunks changed before it was frozen; finish it again');
        END IF;
        PERFORM unhold_recipes((
            SELECT array_agg(digest) FROM parts WHERE cid = c.cid AND idx >= moved));
        DELETE FROM parts WHERE cid = c.cid;
        PERFORM detach(c.cid, 0);
    END IF;
    IF which NOT LIKE '%.r' THEN
        PERFORM hold_content(name);
        UPDATE operations SET content_length = whole, content_inline = NULL,
            content_digest = name WHERE id = which;
    END IF;
END $$;

-- Seal all of a content and freeze it: most content is small, and never has pieces.
CREATE FUNCTION freeze_whole(me bigint, m jsonb, size bigint, part bigint)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    which text := m->>'key';
    name bytea := decode(m->>'digest', 'hex');
    c contents;
    listed bytea[];
    s jsonb;
    i bigint := 0;
BEGIN
    SELECT * INTO c FROM contents WHERE key = which FOR UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF name IS NULL OR c.prefix > 0 OR c.chunk_size <> (m->>'size')::bigint
        OR EXISTS (SELECT 1 FROM pieces WHERE cid = c.cid)
    THEN
        FOR s IN SELECT * FROM jsonb_array_elements(m->'seals') LOOP
            PERFORM seal(me, which, i, decode(s->>0, 'hex'), (s->>1)::bigint, size);
            i := i + 1;
        END LOOP;
        PERFORM freeze(m, size, part);
        RETURN;
    END IF;
    FOR s IN SELECT * FROM jsonb_array_elements(m->'seals') LOOP
        PERFORM take_chunk(me, decode(s->>0, 'hex'), (s->>1)::bigint);
        listed := listed || decode(s->>0, 'hex');
    END LOOP;
    -- The recipe takes over as many of these holds as it lacks.
    i := keep_recipe(m->'rest'->0, false, 1);
    PERFORM unhold_chunks(listed[i + 1:]);
    PERFORM retire(c.tail);
    DELETE FROM contents WHERE cid = c.cid;
    UPDATE operations SET content_length = (m->>'length')::bigint, content_inline = NULL,
        content_digest = name WHERE id = which;
END $$;

CREATE FUNCTION join_contents(m jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    which text := m->>'op';
    lacking bigint;
    name text;
BEGIN
    IF NOT EXISTS (SELECT 1 FROM contents WHERE key = which) THEN
        RETURN;  -- the content was ended or frozen meanwhile
    END IF;
    PERFORM drop_content(which);
    IF jsonb_typeof(m->'recipe') <> 'null' THEN
        lacking := keep_recipe(m->'recipe', true, 0);
        FOR name IN SELECT value FROM jsonb_array_elements_text(m->'parts')
            WITH ORDINALITY AS p(value, n) WHERE n <= lacking
        LOOP
            UPDATE recipes SET refs = refs + 1
                WHERE digest = decode(name, 'hex') AND dismantled = 0 AND NOT joined;
            IF NOT FOUND THEN
                PERFORM conflict('a part was deleted meanwhile, or is made of parts itself');
            END IF;
        END LOOP;
    END IF;
    PERFORM hold_content(decode(m->>'digest', 'hex'));
    UPDATE operations SET content_length = (m->>'length')::bigint, content_inline = NULL,
        content_digest = decode(m->>'digest', 'hex') WHERE id = which;
END $$;

-- Operations and files ------------------------------------------------------------------

CREATE FUNCTION create_operation(me bigint, m jsonb, size bigint)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM hold_content(decode(m->>'content_digest', 'hex'));
    PERFORM hold_content(decode(m->>'response_digest', 'hex'));
    INSERT INTO operations (
        id, state, method, target, fields, principal, keep_incomplete, created_at,
        expires_at, length, content_length, content_inline, content_digest, response_head,
        response_length, response_inline, response_digest, explicit_completion, reserved,
        owner
    ) VALUES (
        m->>'id', m->>'state', m->>'method', m->>'target', decode(m->>'fields', 'hex'),
        m->>'principal', (m->>'keep_incomplete')::boolean, (m->>'created_at')::float8,
        (m->>'expires_at')::float8, (m->>'length')::bigint,
        (m->>'content_length')::bigint, decode(m->>'content_inline', 'hex'),
        decode(m->>'content_digest', 'hex'), decode(m->>'response_head', 'hex'),
        (m->>'response_length')::bigint, decode(m->>'response_inline', 'hex'),
        decode(m->>'response_digest', 'hex'), (m->>'explicit_completion')::boolean,
        (m->>'reserved')::bigint, me
    ) ON CONFLICT (id) DO NOTHING;
    IF NOT FOUND THEN
        PERFORM conflict('the operation exists already');
    END IF;
    IF m->>'content_length' IS NULL AND m->>'state' <> 'gone' THEN
        INSERT INTO contents (key, chunk_size) VALUES (m->>'id', size);
    END IF;
END $$;

CREATE FUNCTION record_response(m jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    which text := m->>'op';
    o operations;
BEGIN
    SELECT * INTO o FROM operations WHERE id = which AND state <> 'gone' FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    PERFORM hold_content(decode(m->>'digest', 'hex'));
    PERFORM release_content(o.response_digest);
    UPDATE operations SET state = 'done', expires_at = (m->>'expires_at')::float8,
        response_head = decode(m->>'head', 'hex'), response_length = (m->>'length')::bigint,
        response_inline = decode(m->>'inline', 'hex'),
        response_digest = decode(m->>'digest', 'hex') WHERE id = which;
    PERFORM drop_content(which || '.r');
    IF NOT (m->>'keep')::boolean THEN
        PERFORM release_content(o.content_digest);
        UPDATE operations SET content_length = NULL, content_inline = NULL,
            content_digest = NULL WHERE id = which;
        PERFORM drop_content(which);
    END IF;
END $$;

CREATE FUNCTION end_operation(which text, expires float8, forgets boolean)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    o operations;
BEGIN
    SELECT * INTO o FROM operations WHERE id = which FOR UPDATE;
    IF NOT FOUND OR (o.state = 'gone' AND NOT forgets) THEN
        RETURN;
    END IF;
    IF o.state <> 'gone' THEN
        PERFORM release_content(o.content_digest);
        PERFORM release_content(o.response_digest);
        PERFORM drop_content(which);
        PERFORM drop_content(which || '.r');
    END IF;
    IF forgets THEN
        DELETE FROM operations WHERE id = which;
    ELSE
        UPDATE operations SET state = 'gone', expires_at = expires, fields = '\x90',
            content_length = NULL, content_inline = NULL, content_digest = NULL,
            response_head = NULL, response_length = NULL, response_inline = NULL,
            response_digest = NULL WHERE id = which;
    END IF;
END $$;

CREATE FUNCTION expect(f files, expected jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF expected = '"anything"' THEN
        RETURN;
    END IF;
    IF (expected = 'null' AND f.id IS NULL) OR (
        expected <> 'null' AND f.id IS NOT NULL
        AND f.content_length = (expected->>0)::bigint
        AND f.content_inline IS NOT DISTINCT FROM decode(expected->>1, 'hex')
        AND f.content_digest IS NOT DISTINCT FROM decode(expected->>2, 'hex'))
    THEN
        RETURN;
    END IF;
    PERFORM conflict('the file is not the one expected');
END $$;

CREATE FUNCTION publish_file(m jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    f files;
BEGIN
    SELECT * INTO f FROM files WHERE namespace = m->>'ns' AND name = m->>'name' FOR UPDATE;
    PERFORM expect(f, m->'expected');
    PERFORM hold_content(decode(m->>'digest', 'hex'));
    PERFORM release_content(f.content_digest);
    INSERT INTO files (namespace, name, owner, fields, modified_at, expires_at,
        content_length, content_inline, content_digest)
    VALUES (m->>'ns', m->>'name', m->>'owner', decode(m->>'fields', 'hex'),
        (m->>'modified_at')::float8, (m->>'expires_at')::float8, (m->>'length')::bigint,
        decode(m->>'inline', 'hex'), decode(m->>'digest', 'hex'))
    ON CONFLICT (namespace, name) DO UPDATE SET fields = excluded.fields,
        modified_at = excluded.modified_at, expires_at = excluded.expires_at,
        content_length = excluded.content_length, content_inline = excluded.content_inline,
        content_digest = excluded.content_digest;
END $$;

CREATE FUNCTION remove_file(m jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    f files;
BEGIN
    SELECT * INTO f FROM files WHERE namespace = m->>'ns' AND name = m->>'name' FOR UPDATE;
    PERFORM expect(f, m->'expected');
    IF f.id IS NOT NULL THEN
        PERFORM release_content(f.content_digest);
        DELETE FROM files WHERE id = f.id;
    END IF;
END $$;

-- The outbox ------------------------------------------------------------------------------

CREATE FUNCTION bury_event(which bigint, reason text, most bigint)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO dead_events SELECT seq, id, operation, kind, recorded_at, dated, payload,
        due_at, attempts + 1, reason FROM events WHERE seq = which;
    DELETE FROM events WHERE seq = which;
    DELETE FROM dead_events WHERE seq <= (
        SELECT seq FROM dead_events ORDER BY seq DESC LIMIT 1 OFFSET most);
END $$;

CREATE FUNCTION revive_events(seqs bigint[], at float8) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE events SET due_at = 0, recorded_at = at WHERE seq = ANY (seqs);
    INSERT INTO events (seq, id, operation, kind, recorded_at, dated, payload, error)
        SELECT seq, id, operation, kind, at, dated, payload, error FROM dead_events
        WHERE seq = ANY (seqs);
    DELETE FROM dead_events WHERE seq = ANY (seqs);
END $$;

-- Claim the first events that may be sent, for this node. One node at a time claims: an
-- event must not be claimed before an earlier one of the same operation, which another
-- node is just claiming. What a node claimed stays its own until the node ends.
CREATE FUNCTION claim_events(me bigint, at float8, most bigint, wants_tasks boolean)
RETURNS TABLE (
    seq bigint, id text, operation text, kind text, recorded_at float8, dated float8,
    payload bytea, due_at float8, attempts bigint, error text
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(current_schema() || '.events', 0));
    UPDATE events SET claimed_by = me
        WHERE claimed_by IS DISTINCT FROM me AND seq IN (
            SELECT e.seq FROM events e
            WHERE (left(e.kind, 5) = 'task.') = wants_tasks AND NOT EXISTS (
                SELECT 1 FROM events f WHERE f.operation = e.operation AND f.seq <= e.seq
                AND (f.due_at > at OR (f.claimed_by <> me AND is_alive(f.claimed_by))))
            ORDER BY e.seq LIMIT most);
    RETURN QUERY SELECT e.seq, e.id, e.operation, e.kind, e.recorded_at, e.dated, e.payload,
        e.due_at, e.attempts, e.error FROM events e
        WHERE e.claimed_by = me AND (left(e.kind, 5) = 'task.') = wants_tasks AND NOT EXISTS (
            SELECT 1 FROM events f WHERE f.operation = e.operation AND f.seq <= e.seq
            AND (f.due_at > at OR f.claimed_by IS DISTINCT FROM me))
        ORDER BY e.seq LIMIT most;
END $$;

-- Usage -----------------------------------------------------------------------------------

CREATE FUNCTION holdings(ids text[], spaces text[], names text[])
RETURNS SETOF holding LANGUAGE sql AS $$
    SELECT CASE WHEN principal IS NULL THEN '' ELSE '=' || principal END,
        (state <> 'gone')::int * 4096 + (state = 'receiving')::int * reserved
            + greatest(0, octet_length(target) + octet_length(fields)
                + coalesce(octet_length(response_head), 0)
                + coalesce(octet_length(response_inline), 0) - 1024),
        (state IN ('receiving', 'waiting'))::int::bigint, content_digest, response_digest
    FROM operations WHERE id = ANY (ids)
    UNION ALL
    SELECT f.namespace, 4096 + greatest(0, octet_length(f.name) + octet_length(f.fields)
            + coalesce(octet_length(f.content_inline), 0) - 1024)::bigint,
        0::bigint, f.content_digest, NULL
    FROM unnest(spaces, names) AS n(space, name)
        JOIN files f ON f.namespace = n.space AND f.name = n.name
$$;

CREATE FUNCTION charge(me bigint, space text, more bigint, opened bigint)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF more <> 0 OR opened <> 0 THEN
        INSERT INTO accounts AS a VALUES
            (space, me % 16, more, opened), ('*', me % 16, more, opened)
            ON CONFLICT (namespace, shard)
            DO UPDATE SET bytes = a.bytes + excluded.bytes, open = a.open + excluded.open;
    END IF;
END $$;

-- Charge what has changed between two looks at the same operations and files. Each node
-- has its own row of an account (its shard), so that nodes do not wait for each other.
-- Returns the accounts that have changed.
CREATE FUNCTION settle(me bigint, before holding[], after holding[])
RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
    r record;
    size bigint;
    left_over bigint;
    is_new boolean;
    spaces text[] := '{}';
BEGIN
    FOR r IN
        SELECT space, sum(bytes)::bigint AS bytes, sum(open)::bigint AS open FROM (
            SELECT namespace AS space, bytes, open FROM unnest(after)
            UNION ALL SELECT namespace, -bytes, -open FROM unnest(before)) x
        GROUP BY space HAVING sum(bytes) <> 0 OR sum(open) <> 0 ORDER BY space
    LOOP
        PERFORM charge(me, r.space, r.bytes, r.open);
        spaces := spaces || r.space;
    END LOOP;
    FOR r IN
        SELECT space, digest, sum(n)::bigint AS n FROM (
            SELECT namespace AS space, content AS digest, 1 AS n FROM unnest(after)
            UNION ALL SELECT namespace, response, 1 FROM unnest(after)
            UNION ALL SELECT namespace, content, -1 FROM unnest(before)
            UNION ALL SELECT namespace, response, -1 FROM unnest(before)) x
        WHERE digest IS NOT NULL GROUP BY space, digest HAVING sum(n) <> 0
        ORDER BY space, digest
    LOOP
        spaces := spaces || r.space;
        IF r.n > 0 THEN
            SELECT length INTO size FROM recipes WHERE digest = r.digest;
            INSERT INTO kept AS k VALUES (r.space, r.digest, size, r.n)
                ON CONFLICT (namespace, digest) DO UPDATE SET holds = k.holds + r.n
                RETURNING (xmax = 0) INTO is_new;
            IF is_new THEN
                PERFORM charge(me, r.space, size, 0);
            END IF;
        ELSE
            UPDATE kept SET holds = holds + r.n WHERE namespace = r.space AND digest = r.digest
                RETURNING holds, length INTO left_over, size;
            IF left_over = 0 THEN
                DELETE FROM kept WHERE namespace = r.space AND digest = r.digest;
                PERFORM charge(me, r.space, -size, 0);
            END IF;
        END IF;
    END LOOP;
    RETURN spaces;
END $$;

CREATE FUNCTION limit_usage(m jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    size bigint;
    opened bigint;
    whole bigint;
    broken text;
BEGIN
    SELECT coalesce(sum(bytes), 0), coalesce(sum(open), 0) INTO size, opened
        FROM accounts WHERE namespace = m->>'ns';
    SELECT coalesce(sum(bytes), 0) INTO whole FROM accounts WHERE namespace = '*';
    broken := CASE
        WHEN opened > (m->>'open')::bigint THEN 'open'
        WHEN size > (m->>'bytes')::bigint THEN 'bytes'
        WHEN whole > (m->>'total')::bigint THEN 'total' END;
    IF broken IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'TR004', MESSAGE = broken;
    END IF;
END $$;

-- A batch -----------------------------------------------------------------------------------

CREATE FUNCTION perform_mutation(me bigint, m jsonb, b jsonb)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    size bigint := (b->>'chunk_size')::bigint;
BEGIN
    CASE m->>'k'
    WHEN 'seal' THEN
        PERFORM seal(me, m->>'key', (m->>'i')::bigint, decode(m->>'d', 'hex'),
            (m->>'l')::bigint, size);
    WHEN 'whole' THEN
        PERFORM freeze_whole(me, m, size, (b->>'part')::bigint);
    WHEN 'freeze' THEN
        PERFORM freeze(m, size, (b->>'part')::bigint);
    WHEN 'tail' THEN
        PERFORM record_tail(m->>'key', (m->>'offset')::bigint, m->'objects');
    WHEN 'offset' THEN
        UPDATE contents SET durable_offset = greatest(durable_offset, (m->>'offset')::bigint),
            held_back = held_back OR (m->>'back')::boolean WHERE key = m->>'key';
    WHEN 'count' THEN
        UPDATE contents SET held_back = false WHERE key = m->>'key';
    WHEN 'create' THEN
        PERFORM create_operation(me, m, size);
    WHEN 'length' THEN
        UPDATE operations SET length = (m->>'v')::bigint
            WHERE id = m->>'op' AND state <> 'gone';
    WHEN 'reserved' THEN
        UPDATE operations SET reserved = (m->>'v')::bigint
            WHERE id = m->>'op' AND state <> 'gone';
    WHEN 'expires' THEN
        UPDATE operations SET expires_at = (m->>'v')::float8
            WHERE id = m->>'op' AND state <> 'gone';
    WHEN 'state' THEN
        UPDATE operations SET state = m->>'v' WHERE id = m->>'op' AND state <> 'gone';
    WHEN 'move' THEN
        UPDATE operations SET principal = m->>'principal', target = m->>'target'
            WHERE id = m->>'op' AND state <> 'gone';
    WHEN 'join' THEN
        PERFORM join_contents(m);
    WHEN 'response' THEN
        PERFORM record_response(m);
    WHEN 'end' THEN
        PERFORM end_operation(m->>'op', (m->>'v')::float8, false);
    WHEN 'forget' THEN
        PERFORM end_operation(m->>'op', NULL, true);
    WHEN 'publish' THEN
        PERFORM publish_file(m);
    WHEN 'remove' THEN
        PERFORM remove_file(m);
    WHEN 'file_expires' THEN
        UPDATE files SET expires_at = (m->>'v')::float8
            WHERE namespace = m->>'ns' AND name = m->>'name';
    WHEN 'meta' THEN
        INSERT INTO meta VALUES (m->>'name', m->>'value', clock_timestamp())
            ON CONFLICT (name) DO UPDATE SET value = excluded.value, noted = excluded.noted;
    WHEN 'clock' THEN
        -- The service's time never goes back, whichever node notes it last.
        INSERT INTO meta AS o VALUES (m->>'name', m->>'value', clock_timestamp())
            ON CONFLICT (name) DO UPDATE SET value = excluded.value, noted = excluded.noted
            WHERE split_part(o.value, ' ', 1)::float8
                < split_part(excluded.value, ' ', 1)::float8;
    WHEN 'event' THEN
        INSERT INTO events (id, operation, kind, recorded_at, dated, payload) VALUES (
            m->>'id', m->>'op', m->>'kind', (m->>'at')::float8, (m->>'dated')::float8,
            decode(m->>'payload', 'hex'));
    WHEN 'drop' THEN
        DELETE FROM events WHERE seq = ANY (
            SELECT value::bigint FROM jsonb_array_elements_text(m->'seqs'));
    WHEN 'drop_dead' THEN
        DELETE FROM dead_events WHERE seq = ANY (
            SELECT value::bigint FROM jsonb_array_elements_text(m->'seqs'));
    WHEN 'postpone' THEN
        UPDATE events SET due_at = (m->>'due')::float8, attempts = attempts + 1,
            error = m->>'error' WHERE seq = (m->>'seq')::bigint;
    WHEN 'bury' THEN
        PERFORM bury_event((m->>'seq')::bigint, m->>'error', (m->>'most')::bigint);
    WHEN 'revive' THEN
        PERFORM revive_events(
            ARRAY(SELECT value::bigint FROM jsonb_array_elements_text(m->'seqs')),
            (m->>'now')::float8);
    END CASE;
END $$;

-- Perform one submission: whole, or an exception. Returns the accounts that have changed.
CREATE FUNCTION submit(me bigint, s jsonb, b jsonb, charges boolean) RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
    ids text[];
    spaces text[];
    names text[];
    before holding[];
    after holding[];
    charged text[] := '{}';
    m jsonb;
BEGIN
    IF EXISTS (
        SELECT 1 FROM operations WHERE owner IS DISTINCT FROM me
        AND id = ANY (ARRAY(SELECT jsonb_array_elements_text(s->'owned'))))
    THEN
        RAISE EXCEPTION USING ERRCODE = 'TR002',
            MESSAGE = 'another process owns the operation, or none does';
    END IF;
    IF charges THEN
        ids := ARRAY(SELECT jsonb_array_elements_text(s->'ops'));
        SELECT array_agg(f->>0), array_agg(f->>1) INTO spaces, names
            FROM jsonb_array_elements(s->'files') f;
        before := ARRAY(SELECT h FROM holdings(ids, spaces, names) h);
    END IF;
    FOR m IN SELECT * FROM jsonb_array_elements(s->'m') LOOP
        IF m->>'k' = 'limit' THEN
            after := ARRAY(SELECT h FROM holdings(ids, spaces, names) h);
            charged := charged || settle(me, before, after);
            before := after;
            PERFORM limit_usage(m);
        ELSE
            PERFORM perform_mutation(me, m, b);
        END IF;
    END LOOP;
    IF charges THEN
        after := ARRAY(SELECT h FROM holdings(ids, spaces, names) h);
        IF after <> before THEN
            charged := charged || settle(me, before, after);
        END IF;
    END IF;
    RETURN charged;
END $$;

-- Perform a batch. Without `careful` the first error undoes all of it, and has the number
-- of its submission as detail; with it, only that submission is undone.
CREATE FUNCTION apply(me bigint, my_session bigint, number bigint, b jsonb, careful boolean)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    s jsonb;
    results jsonb := '[]';
    result jsonb;
    code text;
    reason text;
    made jsonb;
    all_ops text[];
    charged text[] := '{}';
    spaces text[];
    names text[];
    before holding[];
    -- Usage is counted once for the whole batch, unless a limit needs it in between or a
    -- submission may be undone: each change of an account makes a version of its row.
    at_end boolean := NOT careful AND (b->>'charges')::boolean AND NOT (b->>'limits')::boolean;
BEGIN
    -- The row says that the batch was committed, to a node that lost the answer.
    UPDATE nodes SET seen = clock_timestamp(), batch = number, answer = NULL
        WHERE node = me AND session = my_session AND NOT ended;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'TR003', MESSAGE = 'this node was taken for dead';
    END IF;
    all_ops := ARRAY(SELECT jsonb_array_elements_text(b->'ops'));
    PERFORM 1 FROM operations WHERE id = ANY (all_ops) ORDER BY id FOR NO KEY UPDATE;
    PERFORM pg_advisory_xact_lock(hashtextextended(current_schema() || ':' || value, 0))
        FROM jsonb_array_elements_text(b->'locks');
    IF b->'chunks' <> '[]' THEN
        PERFORM 1 FROM chunks WHERE digest = ANY (
            ARRAY(SELECT decode(value, 'hex') FROM jsonb_array_elements_text(b->'chunks')))
            ORDER BY digest FOR NO KEY UPDATE;
    END IF;
    IF at_end THEN
        SELECT array_agg(f->>0), array_agg(f->>1) INTO spaces, names
            FROM jsonb_array_elements(b->'files') f;
        before := ARRAY(SELECT h FROM holdings(all_ops, spaces, names) h);
    END IF;
    FOR s IN SELECT * FROM jsonb_array_elements(b->'submissions') LOOP
        result := 'null';
        IF careful THEN
            BEGIN
                charged := charged || submit(me, s, b, NOT at_end AND (s->>'charges')::boolean);
            EXCEPTION WHEN SQLSTATE 'TR001' OR SQLSTATE 'TR002' OR SQLSTATE 'TR004' THEN
                GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, reason = MESSAGE_TEXT;
                result := jsonb_build_array(code, reason);
            END;
        ELSE
            charged := charged || submit(me, s, b, NOT at_end AND (s->>'charges')::boolean);
        END IF;
        results := results || jsonb_build_array(result);
    END LOOP;
    IF at_end THEN
        charged := settle(
            me, before, ARRAY(SELECT h FROM holdings(all_ops, spaces, names) h));
    END IF;
    IF b->'chunks' <> '[]' THEN
        -- What is named needs no hold.
        DELETE FROM holds h USING chunks c WHERE h.node = me AND c.digest = h.digest
            AND c.refs > 0 AND h.digest = ANY (
                ARRAY(SELECT decode(value, 'hex') FROM jsonb_array_elements_text(b->'chunks')));
    END IF;
    made := jsonb_build_object(
        'results', results,
        'fold', CASE WHEN b->'sealed' = '[]' THEN '[]' ELSE (
            SELECT coalesce(jsonb_agg(key), '[]') FROM contents
            WHERE key = ANY (ARRAY(SELECT jsonb_array_elements_text(b->'sealed')))
            AND (prefix - (prefix_bytes < prefix * chunk_size)::int) / (b->>'part')::bigint
                > parts) END,
        'usage', CASE WHEN cardinality(charged) = 0 THEN '[]' ELSE (
            SELECT coalesce(jsonb_agg(jsonb_build_array(space,
                (SELECT coalesce(sum(bytes), 0) FROM accounts WHERE namespace = space),
                (SELECT coalesce(sum(open), 0) FROM accounts WHERE namespace = space))), '[]')
            FROM (SELECT DISTINCT unnest(charged || ARRAY['*']) AS space) x) END);
    IF careful THEN
        UPDATE nodes SET answer = made WHERE node = me;
    END IF;
    PERFORM tell_followers(me, all_ops, 'changed');
    RETURN made;
END $$;

-- Fold pieces into a part: see catalog/chunk_lists.py. Nothing if it was done already.
CREATE FUNCTION fold(me bigint, which text, at bigint, first bigint, recipe jsonb)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    c contents;
    found bytea;
BEGIN
    PERFORM 1 FROM operations WHERE id = regexp_replace(which, '\.r$', '') AND owner = me
        FOR NO KEY UPDATE;
    SELECT * INTO c FROM contents WHERE key = which AND parts = at FOR UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    SELECT string_agg(digest, ''::bytea ORDER BY idx) INTO found FROM pieces
        WHERE cid = c.cid AND idx >= first AND idx < first + (recipe->>'n')::bigint;
    IF found IS DISTINCT FROM entries(recipe) THEN
        RETURN false;
    END IF;
    PERFORM add_part(c.cid, at, first, recipe);
    UPDATE contents SET parts = at + 1 WHERE cid = c.cid;
    RETURN true;
END $$;

-- Ownership -----------------------------------------------------------------------------------

-- Tell the nodes that follow an operation. Not this node: it did what there is to tell.
CREATE FUNCTION tell_followers(me bigint, ids text[], what text) RETURNS void LANGUAGE sql AS $$
    SELECT note(node, what || ' ' || operation) FROM followers
        WHERE operation = ANY (ids) AND node <> me
$$;

-- Try to become the owner. Returns 'owner', or 'asked' after the present owner was asked.
CREATE FUNCTION claim(me bigint, which text, ends boolean, by_force boolean)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    o record;
BEGIN
    PERFORM check_alive(me);
    SELECT x.owner, n.node IS NOT NULL AS has_owner,
        n.listens AND n.seen + n.lease > clock_timestamp() AS answers
        INTO o FROM operations x LEFT JOIN nodes n ON n.node = x.owner AND NOT n.ended
        WHERE x.id = which FOR NO KEY UPDATE OF x;
    IF NOT FOUND OR o.owner = me THEN
        RETURN 'owner';
    END IF;
    IF o.answers AND NOT by_force THEN
        PERFORM note(o.owner, format('claimed %s %s %s', which, me, ends::int));
        RETURN 'asked';
    END IF;
    IF o.has_owner THEN
        PERFORM note(o.owner, 'lost ' || which);
    END IF;
    UPDATE operations SET owner = me, gen = gen + 1 WHERE id = which;
    PERFORM tell_followers(me, ARRAY[which], 'changed');
    RETURN 'owner';
END $$;

CREATE FUNCTION release(me bigint, which text, waiting bigint[])
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE operations SET owner = NULL WHERE id = which AND owner = me;
    IF FOUND THEN
        PERFORM tell_followers(me, ARRAY[which], 'changed');
    END IF;
    PERFORM note(node, 'released ' || which) FROM unnest(waiting) AS r(node);
END $$;

-- Follow an operation. A commit that has looked for followers already is waited for: then
-- whoever looks at the operation after this sees what was committed without a notice.
CREATE FUNCTION follow(me bigint, which text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO followers VALUES (which, me) ON CONFLICT DO NOTHING;
    PERFORM 1 FROM operations WHERE id = which FOR SHARE;
END $$;

-- Say that this node is alive. Returns false if it was taken for dead.
CREATE FUNCTION beat(me bigint) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    -- A commit of this node holds the lock, and says the same.
    PERFORM 1 FROM nodes WHERE node = me FOR NO KEY UPDATE SKIP LOCKED;
    IF FOUND THEN
        UPDATE nodes SET seen = clock_timestamp() WHERE node = me AND NOT ended;
    END IF;
    RETURN is_alive(me);
END $$;

CREATE FUNCTION end_node(which bigint) RETURNS void LANGUAGE sql AS $$
    UPDATE nodes SET ended = true WHERE node = which;
    DELETE FROM pins WHERE node = which;
    DELETE FROM holds WHERE node = which;
    DELETE FROM followers WHERE node = which;
$$;

-- End the nodes that were not seen for too long. Returns how many.
CREATE FUNCTION end_lost_nodes(me bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    lost bigint;
    n bigint := 0;
BEGIN
    FOR lost IN SELECT node FROM nodes
        WHERE NOT ended AND node <> me AND seen + lease < clock_timestamp()
        ORDER BY node FOR UPDATE SKIP LOCKED
    LOOP
        PERFORM end_node(lost);
        PERFORM note(f.node, 'changed ' || f.operation) FROM followers f
            JOIN operations o ON o.id = f.operation WHERE o.owner = lost;
        n := n + 1;
    END LOOP;
    -- The last one stays: it says until when the service was running.
    DELETE FROM nodes WHERE ended AND seen < clock_timestamp() - interval '1 day'
        AND seen < (SELECT max(seen) FROM nodes);
    RETURN n;
END $$;

-- Take over operations whose owner ended while their target was, or had to be, called.
CREATE FUNCTION take_abandoned(me bigint, most bigint)
RETURNS SETOF text LANGUAGE sql AS $$
    UPDATE operations SET owner = me, gen = gen + 1 WHERE id IN (
        SELECT id FROM operations
        WHERE state IN ('complete', 'processing', 'abandoned')
        AND owner IS NOT NULL AND owner <> me AND NOT is_alive(owner)
        ORDER BY id LIMIT most FOR NO KEY UPDATE SKIP LOCKED)
    RETURNING id
$$;

-- Collection ----------------------------------------------------------------------------------

CREATE FUNCTION hold_chunks(me bigint, names bytea[])
RETURNS TABLE (digest bytea, number bigint) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    found_rows bigint;
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    -- A node that is being ended loses its holds at the same time: so it waits for this.
    PERFORM 1 FROM nodes n WHERE n.node = me FOR KEY SHARE;
    PERFORM check_alive(me);
    INSERT INTO holds SELECT me, n FROM unnest(names) n ORDER BY n ON CONFLICT DO NOTHING;
    LOOP
        INSERT INTO chunks (digest, length)
            SELECT n, 0 FROM unnest(names) n ORDER BY n ON CONFLICT DO NOTHING;
        -- This waits for a node that is condemning one. Afterwards its row is gone.
        PERFORM 1 FROM chunks c WHERE c.digest = ANY (names) ORDER BY c.digest FOR KEY SHARE;
        GET DIAGNOSTICS found_rows = ROW_COUNT;
        EXIT WHEN found_rows = cardinality(names);
    END LOOP;
    RETURN QUERY SELECT c.digest, c.number FROM chunks c WHERE c.digest = ANY (names);
END $$;

CREATE FUNCTION condemn_chunks(me bigint, most bigint)
RETURNS TABLE (digest bytea, number bigint, length bigint) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    names bytea[];
BEGIN
    PERFORM check_alive(me);
    names := ARRAY(
        SELECT c.digest FROM chunks c WHERE c.refs = 0
        AND NOT EXISTS (SELECT 1 FROM holds h WHERE h.digest = c.digest)
        ORDER BY c.digest LIMIT most FOR UPDATE SKIP LOCKED);
    -- The rows are locked now. A hold that came before the locks is seen from here on.
    WITH gone AS (
        DELETE FROM chunks c WHERE c.digest = ANY (names) AND c.refs = 0
            AND NOT EXISTS (SELECT 1 FROM holds h WHERE h.digest = c.digest)
            RETURNING c.digest, c.number, c.length
    ) INSERT INTO condemned SELECT g.digest, g.number, g.length, me FROM gone g;
    UPDATE condemned x SET node = me WHERE (x.digest, x.number) IN (
        SELECT o.digest, o.number FROM condemned o
        WHERE o.node <> me AND NOT is_alive(o.node)
        ORDER BY o.digest, o.number LIMIT most FOR UPDATE SKIP LOCKED);
    RETURN QUERY SELECT x.digest, x.number, x.length FROM condemned x WHERE x.node = me
        ORDER BY x.digest, x.number LIMIT most;
END $$;

CREATE FUNCTION claim_dropped_parts(me bigint, most bigint)
RETURNS SETOF text LANGUAGE sql AS $$
    UPDATE dropped_parts d SET node = me WHERE d.name IN (
        SELECT o.name FROM dropped_parts o
        WHERE o.node IS NULL OR o.node = me OR NOT is_alive(o.node)
        ORDER BY o.name LIMIT most FOR UPDATE SKIP LOCKED)
    RETURNING d.name
$$;

-- Keep the first chunks of a content, and let go of the others: see ObjectCatalog.reopen().
CREATE FUNCTION reopen(me bigint, which text, first bigint, objects jsonb)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    c contents;
    listed bytea[];
    size bigint;
BEGIN
    PERFORM 1 FROM operations WHERE id = regexp_replace(which, '\.r$', '') AND owner = me
        FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'TR002',
            MESSAGE = 'another process owns the operation, or none does';
    END IF;
    SELECT * INTO c FROM contents WHERE key = which FOR UPDATE;
    IF NOT FOUND OR first > c.prefix THEN
        PERFORM conflict('the content changed meanwhile');
    END IF;
    c.durable_offset := greatest(c.durable_offset, c.prefix_bytes);
    SELECT coalesce(sum(length), 0) INTO size FROM pieces
        WHERE cid = c.cid AND idx >= first AND idx < c.prefix;
    WITH gone AS (
        DELETE FROM pieces WHERE cid = c.cid AND idx >= first RETURNING digest
    ) SELECT array_agg(digest) INTO listed FROM gone;
    PERFORM unhold_chunks(listed);
    c.prefix := first;
    c.prefix_bytes := c.prefix_bytes - size;
    c := with_tail(c, objects);
    UPDATE contents SET prefix = c.prefix, prefix_bytes = c.prefix_bytes, tail = c.tail,
        durable_offset = c.durable_offset WHERE cid = c.cid;
END $$;

-- Drop the content of a response, which begins anew.
CREATE FUNCTION discard(me bigint, which text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM operations WHERE id = regexp_replace(which, '\.r$', '') AND owner = me
        FOR NO KEY UPDATE;
    IF FOUND THEN
        PERFORM drop_content(which);
    END IF;
END $$;

-- One step of collection. Returns the steps, and the recipes that are gone.
CREATE FUNCTION collect_rows(me bigint, most bigint)
RETURNS TABLE (steps bigint, recipes_gone bigint) LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
    c contents;
    r recipes;
    name bytea;
    last bigint;
    listed bytea[];
BEGIN
    steps := 0;
    recipes_gone := 0;
    SELECT * INTO c FROM contents WHERE key IS NULL LIMIT 1 FOR UPDATE SKIP LOCKED;
    IF FOUND THEN
        steps := 1 + release_pieces(c.cid, c.moved_below, most);
    END IF;
    IF steps >= most THEN
        RETURN NEXT;
        RETURN;
    END IF;
    SELECT x.digest INTO name FROM recipes x WHERE x.refs = 0
        AND NOT EXISTS (SELECT 1 FROM pins p WHERE p.digest = x.digest)
        ORDER BY x.digest LIMIT 1 FOR UPDATE SKIP LOCKED;
    -- The row is locked now. A pin that came before the lock is seen from here on.
    SELECT * INTO r FROM recipes x WHERE x.digest = name AND x.refs = 0
        AND NOT EXISTS (SELECT 1 FROM pins p WHERE p.digest = x.digest);
    IF FOUND THEN
        last := least(r.chunk_count, r.dismantled + most - steps);
        listed := ARRAY(
            SELECT substring(r.body FROM (
                octet_length(r.body) - 34 * (r.chunk_count - i) + 1)::int FOR 34)
            FROM generate_series(r.dismantled, last - 1) i);
        IF r.joined THEN
            PERFORM unhold_recipes(listed);
        ELSE
            PERFORM unhold_chunks(listed);
        END IF;
        steps := steps + 1 + last - r.dismantled;
        IF last < r.chunk_count THEN
            UPDATE recipes x SET dismantled = last WHERE x.digest = name;
        ELSE
            DELETE FROM recipes x WHERE x.digest = name;
            recipes_gone := 1;
        END IF;
    END IF;
    RETURN NEXT;
END $$;

CREATE FUNCTION pin_recipe(me bigint, name bytea) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    PERFORM 1 FROM nodes n WHERE n.node = me FOR KEY SHARE;
    PERFORM check_alive(me);
    INSERT INTO pins VALUES (me, name) ON CONFLICT DO NOTHING;
    PERFORM 1 FROM recipes WHERE digest = name AND dismantled = 0 FOR KEY SHARE;
    IF NOT FOUND THEN
        DELETE FROM pins WHERE node = me AND digest = name;
        RETURN false;
    END IF;
    RETURN true;
END $$;

-- Time ----------------------------------------------------------------------------------------

-- The reading of the service's clock, as it is now, or was when the last node was seen.
CREATE FUNCTION service_clock(which text) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT (split_part(value, ' ', 1)::float8 + passed)::text || ' '
        || (split_part(value, ' ', 2)::float8 + passed)::text
    FROM meta, LATERAL (
        SELECT greatest(0, extract(epoch FROM coalesce(max(CASE
            WHEN NOT n.ended AND n.seen + n.lease > clock_timestamp() THEN clock_timestamp()
            ELSE n.seen END), noted) - noted))::float8 AS passed FROM nodes n) p
    WHERE name = which
$$;
