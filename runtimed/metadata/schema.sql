-- Everything the daemon knows that must survive it, by namespace. The page to read first.
--
-- One SQLite file, <root>/metadata.db (WAL). Times are nanoseconds since the epoch, UTC. `labels` is a JSON object of
-- strings. What exists on disk (blobs, snapshot directories) is the stores' own business; the tables here say who
-- may see it and what refers to it. docs/state.md draws both sides together.

-- Namespaces come into being with the first thing written to them; see metadata/namespaces.py.
CREATE TABLE namespaces (
    name       TEXT PRIMARY KEY,
    labels     TEXT NOT NULL DEFAULT '{}'
) STRICT, WITHOUT ROWID;

-- A name that points to a descriptor.
CREATE TABLE images (
    namespace  TEXT NOT NULL REFERENCES namespaces (name),
    name       TEXT NOT NULL,
    media_type TEXT NOT NULL,
    digest     TEXT NOT NULL,
    size       INTEGER NOT NULL,
    annotations TEXT NOT NULL DEFAULT '{}',
    labels     TEXT NOT NULL DEFAULT '{}',
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (namespace, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX images_by_digest ON images (namespace, digest);

-- What a client wants to run; has no state. runtime_options, spec and extensions keep the protobuf Any as it came:
-- type URL beside value.
CREATE TABLE containers (
    namespace  TEXT NOT NULL REFERENCES namespaces (name),
    id         TEXT NOT NULL,
    image      TEXT NOT NULL DEFAULT '',
    runtime    TEXT NOT NULL,
    runtime_options_type TEXT NOT NULL DEFAULT '',
    runtime_options BLOB NOT NULL DEFAULT x'',
    spec_type  TEXT NOT NULL DEFAULT '',
    spec       BLOB NOT NULL DEFAULT x'',
    snapshotter TEXT NOT NULL DEFAULT '',
    snapshot_key TEXT NOT NULL DEFAULT '',
    sandbox    TEXT NOT NULL DEFAULT '',
    extensions TEXT NOT NULL DEFAULT '{}',   -- {name: [type URL, base64 of value]}
    labels     TEXT NOT NULL DEFAULT '{}',
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (namespace, id)
) STRICT, WITHOUT ROWID;

-- What a group of containers runs in (a pod, a virtual machine); has no state. Any as with containers.
CREATE TABLE sandboxes (
    namespace  TEXT NOT NULL REFERENCES namespaces (name),
    id         TEXT NOT NULL,
    sandboxer  TEXT NOT NULL DEFAULT '',     -- the controller that it is of
    runtime    TEXT NOT NULL DEFAULT '',
    runtime_options_type TEXT NOT NULL DEFAULT '',
    runtime_options BLOB NOT NULL DEFAULT x'',
    spec_type  TEXT NOT NULL DEFAULT '',
    spec       BLOB NOT NULL DEFAULT x'',
    extensions TEXT NOT NULL DEFAULT '{}',   -- as those of containers
    labels     TEXT NOT NULL DEFAULT '{}',
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (namespace, id)
) STRICT, WITHOUT ROWID;

-- Holds resources against garbage collection until it is deleted or expires (label containerd.io/gc.expire).
CREATE TABLE leases (
    namespace  TEXT NOT NULL REFERENCES namespaces (name),
    id         TEXT NOT NULL,
    labels     TEXT NOT NULL DEFAULT '{}',
    created_at INTEGER NOT NULL,
    PRIMARY KEY (namespace, id)
) STRICT, WITHOUT ROWID;

-- type: "content", "snapshots/<snapshotter>", "ingests", "images".
CREATE TABLE lease_resources (
    namespace  TEXT NOT NULL,
    lease      TEXT NOT NULL,
    type       TEXT NOT NULL,
    id         TEXT NOT NULL,
    PRIMARY KEY (namespace, lease, type, id),
    FOREIGN KEY (namespace, lease) REFERENCES leases (namespace, id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

-- Which namespace sees which blob of the content store.
CREATE TABLE blobs (
    namespace  TEXT NOT NULL REFERENCES namespaces (name),
    digest     TEXT NOT NULL,
    size       INTEGER NOT NULL,
    labels     TEXT NOT NULL DEFAULT '{}',
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (namespace, digest)
) STRICT, WITHOUT ROWID;
CREATE INDEX blobs_by_digest ON blobs (digest);

-- Content being written. The bytes lie in <root>/content/ingest/<directory>/; a client knows the ref.
CREATE TABLE ingests (
    namespace  TEXT NOT NULL REFERENCES namespaces (name),
    ref        TEXT NOT NULL,
    directory  TEXT NOT NULL UNIQUE,
    expected   TEXT NOT NULL DEFAULT '',     -- digest, when the client said it
    total      INTEGER NOT NULL DEFAULT 0,   -- bytes, when the client said it
    labels     TEXT NOT NULL DEFAULT '{}',
    started_at INTEGER NOT NULL,
    PRIMARY KEY (namespace, ref)
) STRICT, WITHOUT ROWID;

-- A client's snapshot key (or name, once committed) and the key that the snapshotter knows it by.
CREATE TABLE snapshots (
    namespace  TEXT NOT NULL REFERENCES namespaces (name),
    snapshotter TEXT NOT NULL,
    key        TEXT NOT NULL,
    backend_key TEXT NOT NULL,
    parent     TEXT NOT NULL DEFAULT '',     -- a key of the same namespace and snapshotter
    labels     TEXT NOT NULL DEFAULT '{}',
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (namespace, snapshotter, key),
    UNIQUE (snapshotter, backend_key)
) STRICT, WITHOUT ROWID;
CREATE INDEX snapshots_by_parent ON snapshots (namespace, snapshotter, parent);

-- Mounts that the daemon has made under a name, for clients; see mounting/manager.py.
CREATE TABLE mounts (
    namespace  TEXT NOT NULL REFERENCES namespaces (name),
    name       TEXT NOT NULL,
    directory  TEXT NOT NULL UNIQUE,     -- below <root>/mounts/: the mount points
    lease      TEXT NOT NULL DEFAULT '',     -- an ID of the same namespace
    active     TEXT NOT NULL,                -- JSON: mounts that are made
    system     TEXT NOT NULL,                -- JSON: mounts left to who asked
    labels     TEXT NOT NULL DEFAULT '{}',
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (namespace, name)
) STRICT, WITHOUT ROWID;

-- Facts about the store as a whole: 'uuid' (Introspection.Server); metadata/suspects.py.
CREATE TABLE facts (
    key        TEXT PRIMARY KEY,
    value      TEXT NOT NULL
) STRICT, WITHOUT ROWID;
