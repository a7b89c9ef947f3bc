-- Version 2 of the schema: who only watches is called as well.
-- At most once a second, since a call costs every commit of the database a lock: after one, who watches looks by itself.

alter table tokenbudget.heads add column called timestamptz;  -- when those who watch were

-- Processes that show what the ledger comes to, as of lately.
create table tokenbudget.watching (
    process uuid primary key,
    ledger  integer not null references tokenbudget.heads on delete cascade,
    until   timestamptz not null
);
create index watching_by_ledger on tokenbudget.watching (ledger);
create function tokenbudget.watch_here(which integer, me uuid) returns void language sql as $$
    delete from tokenbudget.watching where until < clock_timestamp();
    insert into tokenbudget.watching values (me, which, clock_timestamp() + interval '60 seconds')
    on conflict (process) do update set until = excluded.until;
$$;

create function tokenbudget.call_watchers() returns trigger
language plpgsql set search_path = tokenbudget, pg_temp as $$
begin
    if exists (select from watching where ledger = new.ledger and until > clock_timestamp()) then
        new.called := clock_timestamp();
        perform pg_notify('tokenbudget_' || new.ledger || '_changed', '');
    end if;
    return new;
end $$;
create trigger watchers_are_called before update on tokenbudget.heads for each row
    when (new.seq > old.seq and coalesce(old.called, '-infinity') < clock_timestamp() - interval '1 second')
    execute function tokenbudget.call_watchers();

-- Whoever may wait may watch.
do $$
declare
    given record;
begin
    for given in
        select grantee, privilege_type from information_schema.role_table_grants
        where table_schema = 'tokenbudget' and table_name = 'waiting' and grantee <> current_user
    loop
        execute format('grant %s on tokenbudget.watching to %I', given.privilege_type, given.grantee);
    end loop;
end $$;
