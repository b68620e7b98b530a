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
]
