-- For people with SQL; decisions never read them. Money is USD, instants are UTC.

-- One row per reservation or record, from hold to outcome.
create view calls as
with closing as (
    select reservation,
           arg_max(kind, seq) filter (kind in ('committed', 'rolled_back', 'expired', 'recorded')) as outcome,
           max(ts) filter (kind in ('committed', 'rolled_back', 'expired', 'recorded')) as ended,
           coalesce(max(usd) filter (kind = 'adjusted' and seq = last_adjusted),
                    sum(usd) filter (kind = 'part_committed' or seq = last_end)) as cost_usd,
           coalesce(max(tokens) filter (kind = 'adjusted' and seq = last_adjusted),
                    sum(tokens) filter (kind = 'part_committed' or seq = last_end)) as tokens,
           coalesce(max(requests) filter (kind = 'adjusted' and seq = last_adjusted),
                    sum(requests) filter (kind = 'part_committed' or seq = last_end)) as requests,
           arg_max(basis, seq) filter (kind in ('committed', 'part_committed', 'recorded', 'expired', 'adjusted')) as basis,
           sum(input_tokens) as input_tokens, sum(output_tokens) as output_tokens,
           sum(cache_read_tokens) as cache_read_tokens, sum(cache_write_tokens) as cache_write_tokens,
           sum(reasoning_tokens) as reasoning_tokens, max(response_id) as response_id
    from (select *,
                 max(seq) filter (kind in ('committed', 'recorded', 'expired')) over (partition by reservation) as last_end,
                 max(seq) filter (kind = 'adjusted') over (partition by reservation) as last_adjusted
          from events where reservation is not null and kind not in ('reserved', 'alerted'))
    group by reservation
)
select e.reservation, e.budget, e.ts as reserved,
       closing.ended,
       case when closing.outcome is null then 'open'
            when closing.outcome = 'expired' then if(e.basis = 'unknown', 'counted', 'released')
            else closing.outcome end as state,
       e.held_usd, e.held_tokens, closing.cost_usd, closing.tokens, closing.requests,
       closing.basis, closing.input_tokens, closing.output_tokens, closing.cache_read_tokens, closing.cache_write_tokens,
       closing.reasoning_tokens, e.provider, e.model, closing.response_id, e.key, e.tags, e.origin
from events e left join closing using (reservation)
where e.kind in ('reserved', 'recorded');

-- Open reservations and what they hold.
create view reservations as
select reservation, budget, reserved, held_usd, held_tokens, model, key, tags from calls where state = 'open';

-- The newest definition of each budget.
create view budgets as
select budget, min(ts) as created, arg_max(detail, seq) filter (kind = 'budget_set') as definition,
       bool_or(kind = 'closed') as closed
from events where kind in ('budget_set', 'closed') group by budget;

-- What each budget and all below it have committed and hold, since it was made (whatever its windows).
create view balances as
select b.budget,
       coalesce(sum(c.cost_usd), 0) as committed_usd,
       coalesce(sum(c.held_usd) filter (c.state = 'open'), 0) as reserved_usd,
       coalesce(sum(c.tokens), 0)::bigint as committed_tokens,
       coalesce(sum(c.held_tokens) filter (c.state = 'open'), 0)::bigint as reserved_tokens,
       coalesce(sum(c.requests), 0)::bigint as committed_requests,
       count(*) filter (c.state = 'open') as calls_in_flight,
       count(c.reservation) as calls
from budgets b left join calls c on c.budget = b.budget or starts_with(c.budget, b.budget || '/')
group by b.budget;
