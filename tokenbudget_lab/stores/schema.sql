-- One ledger in one DuckDB file. Made once, when the ledger is created.
-- No primary key, unique index or upsert on events: each is known to cost or to corrupt; the single writer is what
-- makes `seq` unique, and `verify` checks it.

create table meta (name varchar, value varchar);

create table events (
    seq                bigint,          -- 1, 2, 3 … without gaps
    ts                 timestamp,       -- UTC; when the writer decided it
    kind               varchar,
    command            uuid,            -- id of the command that asked for it
    budget             varchar,
    reservation        uuid,            -- id of the reservation or record that it belongs to
    key                varchar,         -- the caller's idempotency key; of a part, its name
    windows            timestamp[],     -- UTC starts of the windows it counts in, leaf to root, lifetimes left out
    held_usd           decimal(38, 12), -- held by a reservation
    held_tokens        bigint,
    usd                decimal(38, 12), -- what the limits count
    tokens             bigint,
    requests           bigint,          -- held by a reservation, or counted
    basis              varchar,         -- measured, estimated, unknown; on `reserved`: unknown if it counts when lost
    input_tokens       bigint,          -- includes cache reads and writes
    output_tokens      bigint,          -- includes reasoning
    cache_read_tokens  bigint,
    cache_write_tokens bigint,
    reasoning_tokens   bigint,
    expires            timestamp,       -- UTC
    provider           varchar,
    model              varchar,
    response_id        varchar,         -- the provider's id of the reply
    origin             varchar,         -- JSON: user, host, notebook or script, git commit
    tags               map(varchar, varchar),
    detail             varchar,         -- JSON: what only this kind of event has
    hash               blob             -- SHA-256(hash of the event before, canonical bytes of this one)
);

-- Append-only: an UPDATE or DELETE, and whatever is made of them, fails with the message.
create table _forbidden (attempt integer);
create trigger events_are_never_changed after update on events for each statement
    insert into _forbidden select error('the event log is append-only')::integer;
create trigger events_are_never_deleted after delete on events for each statement
    insert into _forbidden select error('the event log is append-only')::integer;
