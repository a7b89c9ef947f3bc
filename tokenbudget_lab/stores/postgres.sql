-- Ledgers of many machines in one PostgreSQL database. Made once, by `tokenbudget init`; each version is a migration.
-- What a ledger remembers stands in `log`. Everything else is what the log amounts to, changed in the same transaction, so
-- that a process loads what its commands touch and never reads what others wrote.

create schema tokenbudget;

create table tokenbudget.meta (schema integer not null);

-- One row per ledger: its lock, its order, and the end of its chain.
create table tokenbudget.heads (
    ledger         integer generated always as identity primary key,
    name           text not null unique,
    id             text,                        -- of the ledger, when its first event is there
    seq            bigint not null default 0,   -- the last event's
    ts             bigint not null default 0,
    hash           bytea not null default decode(repeat('00', 32), 'hex'),
    budgets        bigint not null default 0,   -- `seq` of the last change of a budget
    recovered      bigint not null default 0,
    clock_accepted bigint,
    in_flight      bigint not null default 0    -- open reservations
) with (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

-- Instants are Unix microseconds, money is pico-dollars, as they are hashed; `tokenbudget.events` shows them to people.
create table tokenbudget.log (
    ledger             integer not null references tokenbudget.heads,
    seq                bigint not null,
    ts                 bigint not null,
    kind               text not null,
    command            uuid not null,
    budget             text not null,
    reservation        uuid,
    key                text,
    windows            bigint[] not null,
    held_usd           numeric(38),
    held_tokens        bigint,
    usd                numeric(38),
    tokens             bigint,
    requests           bigint,
    basis              text,
    input_tokens       bigint,
    output_tokens      bigint,
    cache_read_tokens  bigint,
    cache_write_tokens bigint,
    reasoning_tokens   bigint,
    expires            bigint,
    provider           text,
    model              text,
    response_id        text,
    origin             text,
    tags               json,                    -- pairs, as they are hashed
    detail             text,
    hash               bytea not null,
    primary key (ledger, seq)
);
-- Not by ledger too: the planner, whose statistics may be old, would read all of a ledger by the first column of whichever.
create index log_by_command on tokenbudget.log (command);
create index log_by_reservation on tokenbudget.log (reservation);
create index log_by_key on tokenbudget.log (key, budget) where key is not null and kind in ('reserved', 'recorded');

create table tokenbudget.budgets_now (
    ledger     integer not null references tokenbudget.heads,
    name       text not null,
    changed    bigint not null,                 -- `seq`
    definition json not null,
    primary key (ledger, name)
);
create table tokenbudget.totals (
    ledger  integer not null references tokenbudget.heads,
    budget  text not null,
    window_ text not null,                      -- '' for the lifetime
    start   bigint not null,
    numbers numeric(38)[] not null,             -- committed, reserved: usd, tokens, requests each; open; unpriced
    alerted json not null,
    primary key (ledger, budget, start, window_)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
create table tokenbudget.in_flight (
    ledger      integer not null references tokenbudget.heads,
    reservation uuid not null,
    seq         bigint not null,
    expires     bigint,
    primary key (reservation, ledger)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
create index in_flight_by_expiry on tokenbudget.in_flight (ledger, expires) where expires is not null;

-- Processes in which somebody waits, as of lately: a call costs every commit of the database a lock, so it is not for nobody.
create table tokenbudget.waiting (
    process uuid primary key,
    ledger  integer not null references tokenbudget.heads on delete cascade,
    until   timestamptz not null
);
create index waiting_by_ledger on tokenbudget.waiting (ledger);
create function tokenbudget.wait_here(which integer, me uuid) returns void language sql as $$
    delete from tokenbudget.waiting where until < clock_timestamp();
    insert into tokenbudget.waiting values (me, which, clock_timestamp() + interval '60 seconds')
    on conflict (process) do update set until = excluded.until;
$$;

-- Append-only, whoever asks.
create function tokenbudget.forbid() returns trigger language plpgsql set search_path = tokenbudget, pg_temp as $$
begin
    raise exception 'the event log is append-only' using errcode = 'insufficient_privilege';
end $$;
create trigger events_are_never_changed before update or delete or truncate on tokenbudget.log
    for each statement execute function tokenbudget.forbid();
revoke update, delete, truncate on tokenbudget.log from public;

create function tokenbudget.plain(e tokenbudget.log) returns json language sql stable as $$
    select json_build_array(
        e.seq, e.ts, e.kind, e.command, e.budget, e.reservation, e.key, e.windows, e.held_usd, e.held_tokens, e.usd, e.tokens,
        e.requests, e.basis, e.input_tokens, e.output_tokens, e.cache_read_tokens, e.cache_write_tokens, e.reasoning_tokens,
        e.expires, e.provider, e.model, e.response_id, e.origin, e.tags, e.detail, encode(e.hash, 'hex'))
$$;

-- All events of the entries with these ids or [budget, key] pairs, and of the commands with these ids, in order. One id at a
-- time, and by no index but its own (`ledger + 0` has none), whatever the statistics of a growing table say.
create function tokenbudget.found(which integer, ids uuid[], keys json) returns setof tokenbudget.log
language plpgsql stable as $$
declare
    entries uuid[];
begin
    entries := array(
        select l.reservation from unnest(ids) i
        cross join lateral (select reservation from tokenbudget.log where command = i and ledger + 0 = which offset 0) l
        where l.reservation is not null);
    if json_array_length(keys) > 0 then
        entries := entries || array(
            select l.reservation from json_array_elements(keys) k
            cross join lateral (
                select reservation from tokenbudget.log
                where key = k->>1 and budget = k->>0 and ledger + 0 = which and kind in ('reserved', 'recorded') offset 0) l);
    end if;
    return query
        select l.* from (select unnest(ids) union select unnest(entries)) e (id)
        cross join lateral (select * from tokenbudget.log where reservation = e.id and ledger + 0 = which offset 0) l
        union all
        select l.* from unnest(ids) i
        cross join lateral (select * from tokenbudget.log where command = i and ledger + 0 = which offset 0) l
        where l.reservation is null
        order by 2;
end $$;

-- The first of a batch's two round trips: take the head, and what the batch touches.
create function tokenbudget.load(which integer, asked json) returns json
language plpgsql set search_path = tokenbudget, pg_temp as $$
declare
    head heads; now_us bigint; due uuid[]; events json; names text[]; starts bigint[];
begin
    if (asked->>'lock')::boolean then
        select * into strict head from heads where ledger = which for no key update;
    else
        select * into strict head from heads where ledger = which;
    end if;
    now_us := coalesce((asked->>'now')::bigint, floor(extract(epoch from clock_timestamp()) * 1000000)::bigint);
    due := array(select reservation from in_flight where ledger = which and expires <= greatest(now_us, head.ts)
                 order by expires, seq limit 5000);
    select json_agg(plain(l) order by l.seq), array_agg(distinct l.budget), array_agg(distinct start)
        into events, names, starts
        from found(which, array(select json_array_elements_text(asked->'ids')::uuid) || due, asked->'keys') l
        left join lateral unnest(l.windows) start on true;
    names := array(
        select distinct array_to_string(parts[1:n], '/')
        from (select unnest(names) as name union select json_array_elements_text(asked->'budgets')) named,
             string_to_array(name, '/') parts, generate_series(1, cardinality(parts)) n);
    starts := array(select distinct s from unnest(
        array(select json_array_elements_text(asked->'starts')::bigint) || starts || 0::bigint) s where s is not null);
    return json_build_object(
        'head', json_build_array(head.seq, head.ts, encode(head.hash, 'hex'), head.id, head.recovered, head.clock_accepted,
                                 head.in_flight, head.budgets),
        'now', now_us,
        'due', due,
        'next', (select min(expires) from in_flight where ledger = which and expires > greatest(now_us, head.ts)),
        'events', coalesce(events, '[]'),
        'names', names,
        'starts', starts,
        'totals', sums(which, names, starts, (asked->>'all')::boolean),
        'budgets', case when head.budgets > (asked->>'since')::bigint then (
            select json_agg(json_build_array(name, definition) order by name)
            from budgets_now where ledger = which and changed > (asked->>'since')::bigint) end);
end $$;

create function tokenbudget.sums(which integer, names text[], starts bigint[], everything boolean) returns json
language plpgsql stable as $$
begin
    if everything then
        return (select json_agg(json_build_array(budget, window_, start, numbers, alerted)) 
            from tokenbudget.totals where ledger = which);
    end if;
    return (select json_agg(json_build_array(name, window_, s, numbers, alerted))
            from unnest(names) name, unnest(starts) s
            cross join lateral (
                select * from tokenbudget.totals where ledger = which and budget = name and start = s offset 0) t);
end $$;

-- The second one: append, and bring what the log amounts to up to date; the caller commits.
create function tokenbudget.append(which integer, before bigint, step jsonb) returns void
language plpgsql set search_path = tokenbudget, pg_temp as $$
declare
    head jsonb := step->'head';
begin
    insert into log select
        which, (e->>0)::bigint, (e->>1)::bigint, e->>2, (e->>3)::uuid, e->>4, (e->>5)::uuid, e->>6,
        array(select jsonb_array_elements_text(e->7)::bigint), (e->>8)::numeric, (e->>9)::bigint, (e->>10)::numeric,
        (e->>11)::bigint, (e->>12)::bigint, e->>13, (e->>14)::bigint, (e->>15)::bigint, (e->>16)::bigint, (e->>17)::bigint,
        (e->>18)::bigint, (e->>19)::bigint, e->>20, e->>21, e->>22, e->>23, (e->24)::json, e->>25, decode(e->>26, 'hex')
        from jsonb_array_elements(step->'events') e;
    insert into totals select which, t->>0, t->>1, (t->>2)::bigint, array(select jsonb_array_elements_text(t->3)::numeric), (t->4)::json
        from jsonb_array_elements(step->'totals') t
        on conflict (ledger, budget, start, window_) do update set numbers = excluded.numbers, alerted = excluded.alerted;
    insert into in_flight select which, (r->>0)::uuid, (r->>1)::bigint, (r->>2)::bigint
        from jsonb_array_elements(step->'open') r
        on conflict (reservation, ledger) do update set expires = excluded.expires;
    delete from in_flight where ledger + 0 = which
        and reservation = any(array(select jsonb_array_elements_text(step->'ended')::uuid));
    insert into budgets_now select which, b->>0, (b->>1)::bigint, (b->2)::json from jsonb_array_elements(step->'budgets') b
        on conflict (ledger, name) do update set changed = excluded.changed, definition = excluded.definition;
    update heads set
        seq = (head->>0)::bigint, ts = (head->>1)::bigint, hash = decode(head->>2, 'hex'), id = head->>3,
        recovered = (head->>4)::bigint, clock_accepted = (head->>5)::bigint, in_flight = (head->>6)::bigint,
        budgets = (head->>7)::bigint
        where ledger = which and seq = before;
    if not found then
        raise exception 'somebody else has appended in between' using errcode = 'serialization_failure';
    end if;
    if (step->>'freed')::boolean and exists (select from waiting where ledger = which and until > clock_timestamp()) then
        perform pg_notify('tokenbudget_' || which, '');
    end if;
end $$;

create view tokenbudget.events as
select h.name as ledger, l.seq, timestamp 'epoch' + l.ts * interval '1 microsecond' as ts, kind, command, budget, reservation,
    key, array(select timestamp 'epoch' + start * interval '1 microsecond' from unnest(windows) start) as windows,
    (held_usd * 0.000000000001)::numeric(38, 12) as held_usd, held_tokens, (usd * 0.000000000001)::numeric(38, 12) as usd,
    tokens, requests, basis, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, reasoning_tokens,
    timestamp 'epoch' + expires * interval '1 microsecond' as expires, provider, model, response_id, origin,
    tags, detail, l.hash
from tokenbudget.log l join tokenbudget.heads h using (ledger);
