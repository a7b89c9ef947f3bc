-- For people with SQL; decisions never read them. Money is USD, instants are UTC.

-- One row per reservation or record, from hold to outcome. Counted is what its last step says, be it an end or an
-- adjustment, and with an end the parts before it: a commit after an expiry replaces what the expiry counted.
create view calls as
with steps as (
    select *,
           kind in ('reserved', 'recorded') as begins,
           kind in ('committed', 'rolled_back', 'expired', 'recorded') as ends,
           kind in ('committed', 'rolled_back', 'expired', 'recorded', 'adjusted') as settles
    from events where reservation is not null and kind <> 'alerted'
),
folded as (
    select reservation,
           min(seq) as seq,
           any_value(kind) filter (begins) as beginning,
           any_value(budget) filter (begins) as budget,
           any_value(ts) filter (begins) as reserved,
           any_value(case when kind = 'recorded' then make_timestamp((detail ->> 'spent')::bigint) end) as spent,
           arg_max(ts, seq) filter (ends) as ended,
           arg_max(kind, seq) filter (ends) as ending,
           max(expires) as expires,
           any_value(held_usd) filter (begins) as held_usd,
           any_value(held_tokens) filter (begins) as held_tokens,
           any_value(requests) filter (kind = 'reserved') as held_requests,
           any_value(case when kind = 'reserved' then (detail ->> 'input_tokens')::bigint end) as counted_input_tokens,
           any_value(case when kind = 'reserved' then (detail ->> 'max_output_tokens')::bigint end) as max_output_tokens,
           any_value(case when kind = 'reserved' then (detail -> 'call') ->> 'counted_by' end) as counted_by,
           any_value(case when kind = 'reserved' then ((detail -> 'call') ->> 'attempt')::bigint end) as sdk_attempt,
           any_value(basis) filter (kind = 'reserved') as basis_if_lost,
           arg_max(kind, seq) filter (settles) as last_kind,
           arg_max_null(basis, seq) filter (settles) as last_basis,
           arg_max_null(usd, seq) filter (settles) as last_usd,
           arg_max_null(tokens, seq) filter (settles) as last_tokens,
           arg_max_null(requests, seq) filter (settles) as last_requests,
           max(basis) filter (kind = 'part_committed' and basis <> 'estimated') as part_basis,
           bool_or(basis = 'estimated') filter (kind = 'part_committed') as part_estimated,
           sum(usd) filter (kind = 'part_committed') as part_usd,
           sum(tokens) filter (kind = 'part_committed')::bigint as part_tokens,
           sum(requests) filter (kind = 'part_committed')::bigint as part_requests,
           sum(input_tokens)::bigint as input_tokens,
           sum(output_tokens)::bigint as output_tokens,
           sum(cache_read_tokens)::bigint as cache_read_tokens,
           sum(cache_write_tokens)::bigint as cache_write_tokens,
           sum(reasoning_tokens)::bigint as reasoning_tokens,
           sum(case when settles or kind = 'part_committed' then (detail ->> 'cache_write_1h_tokens')::bigint end)::bigint
               as cache_write_1h_tokens,
           sum(case when settles or kind = 'part_committed' then (detail ->> 'web_searches')::bigint end)::bigint as web_searches,
           arg_max(detail ->> 'context', seq) as context,
           arg_max(detail ->> 'prices', seq) filter (kind in ('committed', 'part_committed', 'recorded')) as prices,
           arg_max(detail ->> 'priced_as', seq) filter (kind in ('committed', 'part_committed', 'recorded')) as priced_as,
           arg_max((detail ->> 'above')::bigint, seq) filter (kind in ('committed', 'part_committed', 'recorded')) as above,
           coalesce(bool_or(case when kind = 'committed' then (detail ->> 'late')::boolean end), false) as late,
           coalesce(bool_or(case when kind = 'committed' then (detail ->> 'overrun')::boolean end), false) as overrun,
           any_value(provider) filter (begins) as provider,
           any_value(model) filter (begins) as model,
           arg_max(response_id, seq) filter (kind <> 'sent') as response_id,
           any_value(key) filter (begins) as key,
           any_value(tags) filter (begins) as tags,
           any_value(origin) filter (begins) as origin
    from steps group by reservation
)
select seq, reservation, budget,
       case when ending is null then 'open'
            when ending <> 'expired' then ending
            when basis_if_lost = 'unknown' then 'counted'
            else 'released' end as state,
       reserved,
       coalesce(spent, reserved) as spent_at,
       ended,
       case when beginning = 'reserved' then (epoch_us(ended) - epoch_us(reserved)) / 1e6 end as latency_s,
       expires,
       held_usd, held_tokens, held_requests, counted_input_tokens, max_output_tokens, counted_by, sdk_attempt,
       case when ending is null then held_usd - least(held_usd, coalesce(part_usd, 0)) end::decimal(38, 12) as reserved_usd,
       case when ending is null then held_tokens - least(held_tokens, coalesce(part_tokens, 0)) end as reserved_tokens,
       case when ending is null then held_requests - least(held_requests, coalesce(part_requests, 0)) end as reserved_requests,
       case when last_kind = 'adjusted' then last_usd
            else coalesce(part_usd + last_usd, part_usd, last_usd) end::decimal(38, 12) as cost_usd,
       case when last_kind = 'adjusted' then last_tokens
            else coalesce(part_tokens + last_tokens, part_tokens, last_tokens) end as tokens,
       case when last_kind = 'adjusted' then last_requests
            else coalesce(part_requests + last_requests, part_requests, last_requests) end as requests,
       case when last_kind = 'adjusted' then last_basis
            when last_basis = 'unknown' or part_basis = 'unknown' then 'unknown'
            when last_basis = 'estimated' or part_estimated then 'estimated'
            else coalesce(last_basis, part_basis) end as basis,
       input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, cache_write_1h_tokens, reasoning_tokens, web_searches,
       context, case when last_kind <> 'adjusted' then prices end as prices, priced_as, above,
       late, overrun, provider, model, response_id, key, tags, origin
from folded;

-- Open reservations and what they still hold.
create view reservations as
select reservation, budget, reserved, expires, reserved_usd, reserved_tokens, reserved_requests, provider, model, key, tags
from calls where state = 'open';

-- The newest definition of each budget.
create view budgets as
select budget, min(ts) as created, arg_max(detail, seq) filter (kind = 'budget_set') as definition,
       bool_or(kind = 'closed') as closed
from events where kind in ('budget_set', 'closed') group by budget;

-- What each budget and all below it have committed and hold, since it was made (whatever its windows).
create view balances as
with own as (
    select budget, sum(cost_usd) as usd, sum(tokens) as tokens, sum(requests) as requests,
           sum(reserved_usd) as open_usd, sum(reserved_tokens) as open_tokens, sum(reserved_requests) as open_requests,
           count(*) filter (state = 'open') as in_flight,
           count(*) filter (state in ('committed', 'counted', 'recorded') and cost_usd is null) as unpriced,
           count(*) as calls
    from calls group by budget
)
select b.budget,
       coalesce(sum(usd), 0)::decimal(38, 12) as committed_usd,
       coalesce(sum(open_usd), 0)::decimal(38, 12) as reserved_usd,
       coalesce(sum(tokens), 0)::bigint as committed_tokens,
       coalesce(sum(open_tokens), 0)::bigint as reserved_tokens,
       coalesce(sum(requests), 0)::bigint as committed_requests,
       coalesce(sum(open_requests), 0)::bigint as reserved_requests,
       coalesce(sum(in_flight), 0)::bigint as calls_in_flight,
       coalesce(sum(unpriced), 0)::bigint as unpriced_calls,
       coalesce(sum(calls), 0)::bigint as calls
from budgets b left join own on own.budget = b.budget or starts_with(own.budget, b.budget || '/')
group by b.budget;
