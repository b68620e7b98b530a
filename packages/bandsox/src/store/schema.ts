/** The tables, version by version. The rules that must never be broken stand here, where no code can go round them. */

/** `PRAGMA application_id` of our databases: "BSOX". */
export const APPLICATION_ID = 0x42534f58

/** How many events are kept. */
export const EVENT_LIMIT = 10_000

/**
 * The steps from each version to the next; a database of version N has been through the first N. A step is never changed once it
 * was released: a new one is added.
 */
export const migrations: readonly string[] = [
  `
  CREATE TABLE storage (
    -- One row: which folder this is, to tell a copy of it from the original.
    only INTEGER PRIMARY KEY CHECK (only = 1),
    path TEXT NOT NULL,
    inode TEXT NOT NULL
  ) STRICT;

  CREATE TABLE allocators (
    name TEXT PRIMARY KEY,
    next INTEGER NOT NULL
  ) STRICT;
  INSERT INTO allocators VALUES ('cid', 3), ('port', 9000);

  CREATE TABLE sandboxes (
    id TEXT PRIMARY KEY CHECK (id GLOB 'sbx_??????????'),
    name TEXT,
    imported_from TEXT UNIQUE,
    image TEXT NOT NULL CHECK (json_valid(image)),
    image_digest TEXT NOT NULL GENERATED ALWAYS AS (image ->> '$.digest') STORED,
    vcpu INTEGER NOT NULL CHECK (vcpu > 0),
    memory_mib INTEGER NOT NULL CHECK (memory_mib > 0),
    disk_mib INTEGER NOT NULL CHECK (disk_mib > 0),
    env TEXT NOT NULL CHECK (json_valid(env)),
    limits TEXT NOT NULL CHECK (json_valid(limits)),
    labels TEXT NOT NULL CHECK (json_valid(labels)),
    metadata TEXT NOT NULL CHECK (json_valid(metadata)),
    vsock TEXT NOT NULL CHECK (vsock IN ('auto', 'on', 'off')),
    machine TEXT CHECK (json_valid(machine)),
    timings TEXT NOT NULL CHECK (json_valid(timings)),
    created_at TEXT NOT NULL,
    state TEXT NOT NULL
      CHECK (state IN ('creating', 'running', 'paused', 'stopping', 'stopped', 'hibernated', 'failed')),
    since TEXT NOT NULL,
    reason TEXT,
    -- Held from start to stop by the row that owns them.
    cid INTEGER UNIQUE CHECK (cid BETWEEN 3 AND 65535),
    port INTEGER UNIQUE CHECK (port BETWEEN 9000 AND 9999),
    -- The operation in progress, and the process that does it.
    operation TEXT,
    operation_since TEXT,
    operation_token TEXT,
    holder TEXT CHECK (json_valid(holder)),
    CHECK ((operation IS NULL) = (holder IS NULL)),
    CHECK ((operation IS NULL) = (operation_token IS NULL)),
    CHECK ((cid IS NULL) = (port IS NULL)),
    -- What runs has its numbers; what does not, and is not just being started, has none.
    CHECK (state NOT IN ('running', 'paused', 'stopping') OR cid IS NOT NULL),
    CHECK (cid IS NULL OR state IN ('creating', 'running', 'paused', 'stopping') OR operation IS NOT NULL),
    CHECK (state <> 'creating' OR operation IS NOT NULL),
    CHECK (state <> 'failed' OR reason IS NOT NULL)
  ) STRICT;
  CREATE INDEX sandboxes_by_name ON sandboxes (name);
  CREATE INDEX sandboxes_by_image ON sandboxes (image_digest);

  CREATE TABLE events (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    at TEXT NOT NULL,
    sandbox TEXT NOT NULL,
    name TEXT,
    kind TEXT NOT NULL,
    reason TEXT
  ) STRICT;

  -- No state changes without an event of it.
  CREATE TRIGGER sandbox_created AFTER INSERT ON sandboxes BEGIN
    INSERT INTO events (at, sandbox, name, kind) VALUES (new.created_at, new.id, new.name, 'created');
  END;
  CREATE TRIGGER sandbox_state AFTER UPDATE OF state, reason ON sandboxes
  WHEN old.state IS NOT new.state OR old.reason IS NOT new.reason BEGIN
    INSERT INTO events (at, sandbox, name, kind, reason) VALUES (new.since, new.id, new.name, new.state, new.reason);
  END;
  CREATE TRIGGER sandbox_renamed AFTER UPDATE OF name ON sandboxes WHEN old.name IS NOT new.name BEGIN
    INSERT INTO events (at, sandbox, name, kind)
    VALUES (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), new.id, new.name, 'renamed');
  END;
  CREATE TRIGGER sandbox_deleted AFTER DELETE ON sandboxes BEGIN
    INSERT INTO events (at, sandbox, name, kind)
    VALUES (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), old.id, old.name, 'deleted');
  END;
  CREATE TRIGGER events_are_bounded AFTER INSERT ON events BEGIN
    DELETE FROM events WHERE sequence <= new.sequence - ${EVENT_LIMIT};
  END;
  `,
  `
  -- Files of its disk above the first one, lowest first.
  ALTER TABLE sandboxes ADD COLUMN layers TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(layers));
  -- The snapshot that it was restored from, which may be gone.
  ALTER TABLE sandboxes ADD COLUMN restored_from TEXT;
  -- Whether its root disk is its own, and written to, as the earlier project's are.
  ALTER TABLE sandboxes ADD COLUMN own_root INTEGER NOT NULL DEFAULT 0 CHECK (own_root IN (0, 1));
  UPDATE sandboxes SET own_root = 1 WHERE imported_from IS NOT NULL;
  -- The pool in which it waits for somebody to take it; it is nobody's until then.
  ALTER TABLE sandboxes ADD COLUMN pool TEXT;
  CREATE INDEX sandboxes_by_origin ON sandboxes (restored_from) WHERE restored_from IS NOT NULL;
  CREATE INDEX sandboxes_by_pool ON sandboxes (pool) WHERE pool IS NOT NULL;

  CREATE TABLE snapshots (
    id TEXT PRIMARY KEY CHECK (id GLOB 'snp_??????????'),
    name TEXT,
    -- A user's own; what new sandboxes of an image start from; or the moment that children are being made of.
    purpose TEXT NOT NULL CHECK (purpose IN ('snapshot', 'template', 'fork')),
    -- All that a template depends on, as a digest: there is one of each.
    template_key TEXT UNIQUE,
    -- Where it was taken.
    sandbox TEXT NOT NULL,
    base TEXT REFERENCES snapshots (id),
    metadata TEXT NOT NULL CHECK (json_valid(metadata)),
    created_at TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('creating', 'ready', 'deleting')),
    -- Of its manifest: the manifest has those of the files.
    manifest_digest TEXT,
    -- Size and time of each file when it was last found to be whole.
    seals TEXT CHECK (json_valid(seals)),
    used_at TEXT,
    -- The process that makes it, or removes it.
    holder TEXT CHECK (json_valid(holder)),
    CHECK ((purpose = 'template') = (template_key IS NOT NULL)),
    CHECK ((state = 'ready') = (holder IS NULL)),
    CHECK (state <> 'ready' OR manifest_digest IS NOT NULL)
  ) STRICT;
  CREATE INDEX snapshots_by_name ON snapshots (name);

  -- Why there is no template for a key: it is not tried again and again.
  CREATE TABLE template_failures (
    key TEXT PRIMARY KEY,
    at TEXT NOT NULL,
    reason TEXT NOT NULL
  ) STRICT;

  CREATE TABLE pools (
    id TEXT PRIMARY KEY,
    image TEXT NOT NULL,
    size INTEGER NOT NULL CHECK (size BETWEEN 1 AND 1000),
    -- What its sandboxes are like.
    options TEXT NOT NULL CHECK (json_valid(options)),
    max_age_ms INTEGER NOT NULL CHECK (max_age_ms > 0),
    created_at TEXT NOT NULL,
    -- The process that fills it just now.
    holder TEXT CHECK (json_valid(holder)),
    -- Why it could not be filled, the last time.
    failure TEXT
  ) STRICT;
  `,
]
