"""Questions in SQL: what can be asked, what is refused, and that asking never changes or reaches anything."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from importlib.resources import files
from pathlib import Path
from textwrap import dedent
from typing import Any, cast

import duckdb
import polars as pl
import pytest

import tokenbudget_lab as tbl
from tests.conftest import ON_ONE_MACHINE, Clock, also_on_postgres
from tests.test_frames import Watched
from tokenbudget_lab.desk import Desk
from tokenbudget_lab.rows import COLUMNS
from tokenbudget_lab.sandbox import run

STORES = ON_ONE_MACHINE

SECRET = "thirty-nine-steps"


@pytest.fixture
def study(ledger: tbl.Ledger) -> tbl.Ledger:
    """Three calls of two arms, one of them still open.

    lab/a   committed   $0.10    120 tokens   arm: few-shot
    lab/b   recorded    $1.50      3 tokens   arm: zero-shot
    lab/b   open        $0.20 held
    """
    ledger.budget("lab", usd=10)
    ledger.budget("lab/a", usd=5).reserve_sync(usd="0.30", tags={"arm": "few-shot"}).commit(usd="0.10", tokens=120).result()
    lab_b = ledger.budget("lab/b", usd=5)
    lab_b.record(usd="1.50", tokens=3, tags={"arm": "zero-shot"}).result()
    lab_b.reserve_sync(usd="0.20", tokens=7)
    return ledger


@pytest.fixture
def small() -> Iterator[tbl.Ledger]:
    """A ledger in memory with one budget."""
    with tbl.connect(":memory:") as ledger:
        ledger.budget("lab", usd=10).record(usd="0.5").result()
        yield ledger


# --- what can be asked ---------------------------------------------------------------------------------------------------


@also_on_postgres
def test_each_table_answers(study: tbl.Ledger) -> None:
    """Events, and the views made of them."""
    sizes = {name: study.sql(f"from {name}").height for name in ("events", "calls", "reservations", "budgets", "balances")}
    assert sizes == {"events": 8, "calls": 3, "reservations": 1, "budgets": 3, "balances": 3}


def test_balances_count_a_budget_and_all_below_it(study: tbl.Ledger) -> None:
    rows = study.sql(
        "select budget, committed_usd, reserved_usd, committed_tokens, reserved_tokens, calls_in_flight, calls from balances"
    )
    assert sorted(rows.rows()) == [
        ("lab", Decimal("1.6"), Decimal("0.2"), 123, 7, 1, 3),
        ("lab/a", Decimal("0.1"), Decimal(0), 120, 0, 0, 1),
        ("lab/b", Decimal("1.5"), Decimal("0.2"), 3, 7, 1, 2),
    ]


def test_money_is_decimal_sums_of_tokens_are_integers_instants_are_in_utc(study: tbl.Ledger, clock: Clock) -> None:
    frame = study.sql(
        "select sum(usd) as usd, sum(tokens) as tokens, max(ts) as last, any_value(reservation) as id from events"
    )
    assert frame.schema == {"usd": pl.Decimal(38, 12), "tokens": pl.Int64, "last": pl.Datetime("us", "UTC"), "id": pl.String}
    assert frame.row(0)[:3] == (Decimal("1.6"), 123, clock.now)


def test_a_sum_too_large_for_an_integer_stays_exact(small: tbl.Ledger) -> None:
    assert small.sql("select sum(n) as n from (values (9223372036854775807), (1)) t(n)").item() == Decimal(2**63)


def test_parameters_are_values_and_never_sql(study: tbl.Ledger, clock: Clock) -> None:
    """Each kind of value, in a comparison of its own."""
    query = "select count(*) from events where kind = $kind and usd = $usd and ts >= $since and seq < $most and kind in $kinds"
    since = clock.now - timedelta(hours=1)
    given = {"usd": Decimal("1.50"), "since": since, "most": 100, "kinds": ["recorded", "adjusted"]}
    assert study.sql(query, kind="recorded", **given).item() == 1
    assert study.sql(query, kind="' or true --", **given).item() == 0


@pytest.mark.parametrize("value", ["'; DROP TABLE events; --", "x' OR '1'='1", "%", "_", "(a+)+$"])
def test_a_tag_matches_only_itself(small: tbl.Ledger, value: str) -> None:
    lab = small.budget("lab")
    lab.record(usd=1, tags={"q": value}).result()
    lab.record(usd=1, tags={"q": "x"}).result()
    assert small.sql("select tags['q'] from calls where tags['q'] = $q", q=value).rows() == [(value,)]


def test_a_day_is_cut_where_the_query_says(small: tbl.Ledger) -> None:
    """Spent at half past eleven at night in London, which is the next day in Berlin."""
    at = datetime(2026, 11, 20, 23, 30, tzinfo=UTC)
    small.budget("lab").record(usd=1, at=at).result()
    query = "select spent_at::date, (spent_at at time zone 'Europe/Berlin')::date from calls where spent_at = $at"
    assert small.sql(query, at=at).row(0) == (datetime(2026, 11, 20).date(), datetime(2026, 11, 21).date())  # noqa: DTZ001 - dates


@pytest.mark.parametrize(
    "query",
    [
        "select 1 -- a remark; with a semicolon",
        "select ';' ;",
        "(select 1)",
        "values (1), (2)",
        "with recursive n as (select 1 as i union all select i + 1 from n where i < 5) select * from n",
        "select * from range(3) union all select seq from events",
        "select unnest(map_keys(tags)) from events",
        "select * from (pivot events on kind in ('reserved', 'recorded') using count(*) group by budget)",
        "select definition ->> '$.tz' from budgets",
        "describe calls",
        "summarize calls",
    ],
)
def test_a_query_may_be_as_rich_as_one_select_can_be(study: tbl.Ledger, query: str) -> None:
    assert study.sql(query).width


# --- only what is needed travels, and it is enough -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "read"),
    [
        ("select count(*) from events", {"seq"}),
        ("select sum(usd) from events where kind = 'committed'", {"usd", "kind"}),
        ("select SUM(Usd) FROM Events", {"usd"}),
        ("with e as (select * from events) select max(tokens) from e", {"tokens"}),
        ("select tags['arm'] from events order by ts limit 1", {"tags", "ts"}),
        ("select count(usd) from events", {"usd"}),
        ("select * from events", set(COLUMNS)),
        ("select e from events e", set(COLUMNS)),
        ("select columns('.*_tokens') from events", {name for name in COLUMNS if name.endswith("_tokens")}),
        ("select sum(cost_usd) from calls", {"seq", "kind", "reservation", "usd"}),
    ],
)
def test_only_the_columns_in_use_travel(small: tbl.Ledger, query: str, read: set[str]) -> None:
    watched = Watched(small)
    run(cast("Desk", watched), query)
    assert watched.read == [(read, None)]


QUERIES = [
    "select kind, count(*), sum(usd), count(model), count(distinct budget) from events group by all order by all",
    "select count(*) from events where tags is not null",
    "select count(hash), count(detail), min(octet_length(hash)) from events",
    "select * exclude (ts, expires, windows, command, reservation) from events order by seq",
    "select a.seq, b.kind from events a join events b using (reservation) where a.kind = 'reserved' order by all",
    "select a.seq from events a semi join events b on a.seq = b.seq + 1 order by all",
    "select seq, (select count(*) from events i where i.budget = o.budget and i.seq < o.seq) from events o order by seq",
    "select budget, kind, row_number() over (partition by budget order by seq) from events order by seq",
    "select distinct on (budget) budget, kind from events order by budget, seq desc",
    "with e as materialized (select * from events) select max(tokens) from e union all select min(tokens) from e",
    "select seq, lag(kind) over (order by seq) from events qualify seq % 2 = 0 order by seq",
    "select budget, state, cost_usd, tokens from calls order by seq",
    "select b.*, c.state from balances b join calls c using (budget) order by b.budget, c.seq",
    "select seq, tags['arm'] from events order by tags['arm'] nulls last, seq limit 4",
    "from events select any_value(origin) is null, approx_count_distinct(command) > 0 where seq > 1",
    "select t.k, t.n from (select unnest(map_entries(tags), recursive := true) from events) e, (select 'x' as k, 1 as n) t",
    "select budget from events group by rollup (budget, kind) order by all",
    "select sum(usd) filter (kind = 'committed') as a, list(kind order by seq) as b from events",
    "select exists (select 1 from events where model = 'x'), not exists (from calls where late)",
    "select seq from events where usd > all (select usd from events where kind = 'committed') order by seq",
]


@pytest.mark.parametrize("query", QUERIES)
def test_the_answer_is_what_duckdb_gives_over_all_columns(study: tbl.Ledger, query: str) -> None:
    everything = study.desk.arrow().read_all()
    with duckdb.connect() as con:
        con.register("everything", everything)
        con.execute("create table events as from everything")
        con.execute(files("tokenbudget_lab.stores").joinpath("views.sql").read_text())
        expected = con.sql(query).pl()
    answer = study.sql(query)
    assert answer.rows() == expected.rows()


# --- what is refused -------------------------------------------------------------------------------------------------------

REFUSED = {
    "select 1; select 2": "2 statements",
    "select 1; drop table events": "2 statements",
    "": "0 statements",
    " ; -- nothing": "0 statements",
    "update events set usd = 0": "UPDATE is no SELECT",
    "delete from events": "DELETE is no SELECT",
    "insert into events (seq) values (1)": "INSERT is no SELECT",
    "truncate events": "no SELECT",
    "merge into events using (select 1) on true when matched then delete": "MERGE INTO is no SELECT",
    "drop table events": "DROP is no SELECT",
    "drop trigger events_are_never_changed on events": "DROP is no SELECT",
    "create table mine as select 1": "CREATE is no SELECT",
    "alter table events add column x integer": "ALTER is no SELECT",
    "copy events to 'out.csv'": "COPY is no SELECT",
    "copy (select 1) to 'out.csv'": "COPY is no SELECT",
    "export database 'out'": "EXPORT is no SELECT",
    "attach 'out.duckdb'": "ATTACH is no SELECT",
    "install httpfs": "no SELECT",
    "load httpfs": "LOAD is no SELECT",
    "set enable_external_access = true": "SET is no SELECT",
    "reset lock_configuration": "no SELECT",
    "pragma database_list": "PRAGMA is no SELECT",
    "checkpoint": "no SELECT",
    "call checkpoint()": "CALL is no SELECT",
    "vacuum": "VACUUM is no SELECT",
    "explain analyze select 1": "EXPLAIN is no SELECT",
    "prepare q as select 1": "PREPARE is no SELECT",
    "pivot events on kind using count(*)": "several steps",
    "with x as (insert into events (seq) values (1) returning *) select * from x": "INSERT inside a query",
    "with x as (update events set usd = 0 returning *) select * from x": "UPDATE inside a query",
    "with x as (delete from events returning *) select * from x": "DELETE inside a query",
    "select * from (with x as (delete from events returning *) select * from x)": "DELETE inside a query",
    "with x as (copy events to 'out.csv') select * from x": "COPY",
    "select * from checkpoint()": "checkpoint(…) is not one",
    "select * from force_checkpoint()": "force_checkpoint(…) is not one",
    "select * from read_blob('secret.csv')": "read_blob(…) is not one",
    "select * from read_text('secret.csv')": "read_text(…) is not one",
    "select * from read_csv('secret.csv')": "read_csv(…) is not one",
    "select * from READ_CSV_AUTO('secret.csv')": "read_csv_auto(…) is not one",
    "select (select content from read_text('secret.csv'))": "read_text(…) is not one",
    "select * from glob('*')": "glob(…) is not one",
    "select * from sniff_csv('secret.csv')": "sniff_csv(…) is not one",
    "select * from query('select 1')": "query(…) is not one",
    "select * from query_table('events')": "query_table(…) is not one",
    "select * from json_execute_serialized_sql('{}')": "json_execute_serialized_sql(…) is not one",
    "select * from duckdb_settings()": "duckdb_settings(…) is not one",
    "select * from enable_logging()": "enable_logging(…) is not one",
    "select * from 'secret.csv'": 'Cannot access file "secret.csv"',
    "from 'secret'": "secret does not exist",
    "describe 'secret.csv'": 'Cannot access file "secret.csv"',
    "summarize 'secret.csv'": 'Cannot access file "secret.csv"',
    "select * from (pivot 'secret.csv' on word in ('x') using count(*))": 'Cannot access file "secret.csv"',
    "select * from system.main.read_text('secret.csv')": "read_text(…) is not one",
    "select * from range(3) r, lateral (select * from read_text('secret.csv'))": "read_text(…) is not one",
    "select * from 'https://example.org/x.csv'": "x.csv",
    "select * from hidden": "Table with name hidden does not exist",
    "select * from nowhere": "The tables are events, calls, reservations, budgets, balances",
    "select usd from events order by nonsense": "nonsense",
    "select nonsense from calls": "nonsense",
    "selekt 1": "syntax error",
    "select": "SELECT clause without selection list",
    "select $missing": "missing",
    "select error('stop')": "stop",
    "select error('this column was not loaded')": "not loaded",
    "select interval 1 day as lasting": "column lasting is INTERVAL",
    "select 'x'::integer": "Could not convert",
    "select " + "(" * 3_000 + "1" + ")" * 3_000: "",
    "select '\0'": "NUL",
    "select '\ud800'": "surrogate",
}


@pytest.mark.parametrize(("query", "reason"), REFUSED.items())
def test_what_is_no_single_harmless_select_is_refused(
    small: tbl.Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, query: str, reason: str
) -> None:
    """Nothing is read, nothing is written, and the ledger is as it was."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.csv").write_text(f"word\n{SECRET}\n")
    hidden = pl.DataFrame({"word": [SECRET]})
    before = small.verify()
    with pytest.raises(tbl.QueryRefused) as refused:
        small.sql(query)
    assert reason in refused.value.reason
    assert hidden["word"].item() not in str(refused.value)
    assert small.verify() == before
    assert [path.name for path in tmp_path.iterdir()] == ["secret.csv"]


@pytest.mark.parametrize("query", [None, b"select 1", 1, ["select 1"]])
def test_a_query_is_text(small: tbl.Ledger, query: Any) -> None:
    with pytest.raises(tbl.QueryRefused, match="no SQL text"):
        small.sql(query)


@pytest.mark.parametrize("value", [object(), 2**200, {1, 2}, pl.DataFrame({"a": [1]}), "\ud800"])
def test_a_parameter_that_duckdb_cannot_take_is_refused(small: tbl.Ledger, value: Any) -> None:
    with pytest.raises(tbl.QueryRefused):
        small.sql("select $value", value=value)


def test_a_parameter_that_the_query_does_not_have_is_refused(small: tbl.Ledger) -> None:
    with pytest.raises(tbl.QueryRefused):
        small.sql("select 1", budget="lab")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("enable_external_access", False),
        ("python_enable_replacements", False),
        ("autoinstall_known_extensions", False),
        ("autoload_known_extensions", False),
        ("allow_community_extensions", False),
        ("lock_configuration", True),
        ("temp_directory", ""),
        ("allowed_directories", []),
        ("TimeZone", "UTC"),
        ("disabled_optimizers", ""),
    ],
)
def test_the_sandbox_is_closed_and_locked(small: tbl.Ledger, setting: str, value: Any) -> None:
    shown = small.sql(f"select current_setting('{setting}') as value").to_dicts()[0]["value"]
    assert shown == value


def test_refusals_keep_their_reason_through_a_pickle(small: tbl.Ledger) -> None:
    import pickle

    with pytest.raises(tbl.QueryRefused) as refused:
        small.sql("drop table events")
    assert str(pickle.loads(pickle.dumps(refused.value))) == "query refused: DROP is no SELECT; a query only reads"


def test_a_closed_ledger_says_so() -> None:
    with tbl.connect(":memory:") as ledger:
        pass
    with pytest.raises(tbl.LedgerClosed):
        ledger.sql("select 1")


# --- how long it may take ------------------------------------------------------------------------------------------------


INTERRUPTED = dedent("""
    import signal, sys, threading, time
    import tokenbudget_lab as tbl

    with tbl.connect(":memory:") as ledger:
        lab = ledger.budget("lab", usd=1)
        ledger.sql("select 1")

        def meanwhile():
            time.sleep(1)
            lab.reserve_sync(usd="0.3").commit(usd="0.1").result()
            pressed.append(time.monotonic())
            signal.raise_signal(signal.SIGINT)

        pressed = []
        thread = threading.Thread(target=meanwhile)
        thread.start()
        try:
            ledger.sql(sys.argv[1])
        except KeyboardInterrupt:
            print("interrupted", time.monotonic() - pressed[0] < 10, lab.balance.committed_usd)
        thread.join()
        print(ledger.sql("select sum(cost_usd) from calls").item(), ledger.verify().events)
""")


def test_a_regular_expression_cannot_explode(small: tbl.Ledger) -> None:
    assert small.sql("select regexp_matches(repeat('a', 1_000_000) || 'b', '(a+)+$') as found").item() is False


@pytest.mark.parametrize(
    "query",
    [
        "select sum(a.range * b.range % 7) from range(10_000_000) a, range(1_000_000) b",
        "select range from range(100_000_000_000)",
        "select sum(a.seq) from events a, range(1_000_000) b, range(1_000_000) c",
    ],
)
def test_ctrl_c_ends_a_long_query_and_others_go_on_meanwhile(query: str) -> None:
    """A notebook asks something that would run for hours.

    another thread   reserves and commits while it runs
    Ctrl-C           ends it within seconds
    afterwards       the ledger answers as before
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", INTERRUPTED, query], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout.splitlines(), done.stderr) == (["interrupted True 0.1", "0.100000000000 4"], "")
