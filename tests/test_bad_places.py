"""Bad places: paths and files that are no ledger are refused by a named error, and never touched."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest

import tokenbudget_lab as tbl
from tokenbudget_lab import link
from tokenbudget_lab import place as place_module
from tokenbudget_lab.events import SCHEMA_VERSION
from tokenbudget_lab.place import place_of
from tokenbudget_lab.recovery import log_of

NOBODY = 65534


def opened(path: Any, *, embedded: bool = True) -> None:
    """Open a ledger and close it again."""
    tbl.connect(path, embedded=embedded).close()


def a_ledger(path: Path) -> Path:
    """A ledger with something in it."""
    with tbl.connect(path, embedded=True) as ledger:
        ledger.budget("lab", usd=1).record(usd="0.30").result()
    return path


def as_nobody(code: str, *arguments: object) -> str:
    """Run code as a user whom permissions hold; root, whom they do not, becomes somebody else first.

    Returns:
        What it printed.
    """
    prelude = """
        import os, sys, tempfile, tokenbudget_lab as tbl
        with tempfile.TemporaryDirectory() as folder:  # load all that opening a ledger needs, while it can be read
            with tbl.connect(folder + "/spend.duckdb", embedded=True) as ledger:
                ledger.budget("lab", usd=1).reserve_sync(usd=1)
        if os.getuid() == 0:
            os.setgroups([]); os.setgid(NOBODY); os.setuid(NOBODY)
        path = sys.argv[1]
    """
    lines = [line[8:] for line in prelude.replace("NOBODY", str(NOBODY)).splitlines()]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([*lines, code]), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


REFUSED = """
try:
    tbl.connect(path, embedded=True).close()
except tbl.NotALedger as error:
    print("refused:", error.reason)
"""


# --- what is no path -------------------------------------------------------------------------------------------------------


NO_PATHS: list[Any] = [
    "", " ", "\t\n", "a\0b", "md:lab", "MD:lab", "http://host/x", "https://host/x", "s3://bucket/x", "gs://b/x", "az://b/x",
    "hf://d/x", "file:///tmp/x", "mysql://user:secret@host/db", "~nobody-of-that-name/x", "\ud800", b"spend.duckdb", 5,
    ["spend.duckdb"], True,
]  # fmt: skip


@pytest.mark.parametrize("where", NO_PATHS, ids=ascii)
def test_a_path_that_is_none_is_an_error(where: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is made anywhere, and no password is repeated."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(tbl.InvalidValue) as invalid:
        opened(where)
    assert "secret" not in str(invalid.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["x" * 300, "missing/spend.duckdb", "a file/spend.duckdb", "loop", "x/" * 5000 + "x"], ids=lambda n: n[:20]
)
def test_a_path_that_leads_nowhere_is_an_error(name: str, tmp_path: Path) -> None:
    (tmp_path / "a file").touch()
    (tmp_path / "loop").symlink_to("loop")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(tbl.NotALedger):
        opened(tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_default_ledger_does_not_depend_on_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative TOKENBUDGET_LEDGER is refused."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKENBUDGET_LEDGER", "spend.duckdb")
    with pytest.raises(tbl.InvalidValue) as invalid:
        tbl.connect()
    assert invalid.value.argument == "TOKENBUDGET_LEDGER"
    assert list(tmp_path.iterdir()) == []


# --- what is no file -------------------------------------------------------------------------------------------------------


def fifo(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize("make", [Path.mkdir, fifo, listening], ids=["directory", "fifo", "socket"])
def test_what_is_no_regular_file_is_no_ledger(make: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "x"
    make(path)
    before = path.lstat()
    with pytest.raises(tbl.NotALedger, match="a directory, a device or a pipe"):
        opened(path)
    assert path.lstat() == before


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero", "/"])
def test_devices_and_the_root_are_no_ledgers(path: str) -> None:
    with pytest.raises(tbl.NotALedger):
        opened(path)


@pytest.mark.parametrize("path", ["/proc/spend.duckdb", "/proc/self/spend.duckdb", "/sys/spend.duckdb"])
def test_a_folder_in_which_nothing_can_be_made_holds_no_ledger(path: str) -> None:
    """Not even root's."""
    with pytest.raises(tbl.NotALedger, match="its folder cannot be made"):
        opened(path)


def test_a_file_with_two_names_is_refused_under_both(tmp_path: Path) -> None:
    """Each would get a keeper of its own."""
    first = a_ledger(tmp_path / "spend.duckdb")
    second = tmp_path / "again.duckdb"
    second.hardlink_to(first)
    for path in (first, second):
        with pytest.raises(tbl.NotALedger, match="several names"):
            opened(path)
    second.unlink()
    opened(first)


def test_a_symlink_of_ones_own_leads_to_the_one_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two names of one file are one place."""
    path = a_ledger(tmp_path / "spend.duckdb")
    name = tmp_path / "link"
    name.symlink_to(path)
    monkeypatch.chdir(tmp_path)
    assert place_of(name) == place_of(path) == place_of("spend.duckdb") == place_of("./x/../spend.duckdb")
    with tbl.connect(name, embedded=True) as ledger:
        assert ledger.budget("lab").balance.left_by == "lab"


def test_somebody_elses_symlink_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """She could lead it elsewhere tomorrow."""
    path = a_ledger(tmp_path / "spend.duckdb")
    name = tmp_path / "link"
    name.symlink_to(path)
    if os.getuid() == 0:
        os.lchown(name, NOBODY, NOBODY)
    else:
        monkeypatch.setattr(os, "getuid", lambda: NOBODY)
    with pytest.raises(tbl.NotALedger, match="somebody else's symbolic link"):
        opened(name)


# --- what is in the file -----------------------------------------------------------------------------------------------------

CONTENTS = {
    "0 bytes": (b"", "it is empty"),
    "text": (b"usd,tokens\n1,2\n" * 100, "it is not a DuckDB file"),
    "sqlite": (b"SQLite format 3\0" + bytes(4096), "it is not a DuckDB file"),
    "the beginning of a DuckDB file": (bytes(8) + b"DUCK", "DuckDB cannot open it"),
    "a DuckDB file of rubbish": (bytes(8) + b"DUCK" + bytes(range(256)) * 64, "DuckDB cannot open it"),
}


@pytest.mark.parametrize(("content", "reason"), CONTENTS.values(), ids=CONTENTS.keys())
def test_a_file_of_something_else_is_left_as_it_is(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "x.duckdb"
    path.write_bytes(content)
    with pytest.raises(tbl.NotALedger, match=reason) as refused:
        opened(path)
    assert refused.value.path == str(path)
    assert path.read_bytes() == content
    assert {p.name for p in tmp_path.iterdir()} <= {"x.duckdb", "x.duckdb.d"}


def test_a_database_of_somebody_elses_tables_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "results.duckdb"
    with duckdb.connect(path) as con:
        con.execute("create table meta (name varchar, score double)")
        con.execute("insert into meta values ('few-shot', 0.8)")
    before = path.read_bytes()
    with pytest.raises(tbl.NotALedger):
        opened(path)
    assert path.read_bytes() == before
    with duckdb.connect(path, read_only=True) as con:
        assert con.execute("from meta").fetchall() == [("few-shot", 0.8)]


@pytest.mark.parametrize("embedded", [True, False])
def test_a_ledger_of_a_newer_package_is_left_as_it_is(tmp_path: Path, *, embedded: bool) -> None:
    path = a_ledger(tmp_path / "spend.duckdb")
    with duckdb.connect(path) as con:
        con.execute("update meta set value = ? where name = 'schema'", [str(SCHEMA_VERSION + 1)])
    before = path.read_bytes()
    with pytest.raises(tbl.VersionMismatch) as mismatch:
        opened(path, embedded=embedded)
    assert (mismatch.value.what, mismatch.value.ours, mismatch.value.theirs) == ("schema", SCHEMA_VERSION, SCHEMA_VERSION + 1)
    assert path.read_bytes() == before


def test_what_is_no_ledger_through_a_keeper_is_none_either(tmp_path: Path) -> None:
    path = tmp_path / "x.duckdb"
    path.write_bytes(b"text")
    with pytest.raises(tbl.NotALedger) as refused:
        opened(path, embedded=False)
    assert (refused.value.path, path.read_bytes()) == (str(path), b"text")


# --- whose it is -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["file", "file to read", "folder"])
def test_what_permissions_forbid_is_refused_by_name(what: str) -> None:
    """As a user whom permissions hold: a file that cannot be written or read, a folder where none can be made."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        path = folder / "spend.duckdb"
        if what != "folder":
            a_ledger(path)
        everything = [folder, *folder.rglob("*")]
        if os.getuid() == 0:
            for mine in everything:
                os.chown(mine, NOBODY, NOBODY)
        if what == "file":
            path.chmod(0o400)
        elif what == "file to read":
            path.chmod(0o000)
        else:
            folder.chmod(0o500)
        before = path.read_bytes() if path.exists() and (what != "file to read" or os.getuid() == 0) else b""
        told = as_nobody(REFUSED, path)
        folder.chmod(0o700)
        if path.exists():
            path.chmod(0o600)
        assert told.startswith("refused:")
        assert not before or path.read_bytes() == before


@pytest.mark.parametrize("kind", ["file", "symlink", "somebody else's"])
def test_the_folder_beside_it_is_a_folder_of_ones_own(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepared by another user, it could hold another key."""
    beside = tmp_path / "spend.duckdb.d"
    if kind == "file":
        beside.touch()
    elif kind == "symlink":
        (tmp_path / "elsewhere").mkdir()
        beside.symlink_to(tmp_path / "elsewhere")
    else:
        beside.mkdir()
        if os.getuid() == 0:
            os.chown(beside, NOBODY, NOBODY)
        else:
            monkeypatch.setattr(os, "getuid", lambda: NOBODY)
    with pytest.raises(tbl.NotALedger):
        opened(tmp_path / "spend.duckdb")
    assert not (tmp_path / "spend.duckdb").exists()


def test_what_is_made_is_for_this_user_only(tmp_path: Path) -> None:
    """Whatever the umask says."""
    before = os.umask(0)
    try:
        with tbl.connect(tmp_path / "spend.duckdb", embedded=True) as ledger:
            ledger.budget("lab", usd=1)
            modes = {p.relative_to(tmp_path).as_posix(): p.stat().st_mode & 0o777 for p in tmp_path.rglob("*")}
    finally:
        os.umask(before)
    assert modes.pop("spend.duckdb.d") == 0o700
    assert set(modes.values()) == {0o600}, modes


def test_a_folder_that_others_may_write_to_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They could replace the file; with strictness it is refused."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.warns(UserWarning, match="others may write"):
        opened(shared / "spend.duckdb")
    monkeypatch.setenv("TOKENBUDGET_STRICT", "1")
    with pytest.raises(tbl.NotALedger, match="others may write"):
        opened(shared / "spend.duckdb")
    shared.chmod(0o1777)  # sticky, as /tmp is: nobody may replace somebody else's file
    opened(shared / "spend.duckdb")


def test_a_folder_that_others_may_write_to_is_warned_of_by_each_client_of_a_keeper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody reads the keeper's log, and a keeper that runs already was started by somebody less strict."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    path = shared / "spend.duckdb"
    for _ in range(2):
        with pytest.warns(UserWarning, match="others may write"):
            tbl.connect(path).close()
    monkeypatch.setenv("TOKENBUDGET_STRICT", "1")
    with pytest.raises(tbl.NotALedger, match="others may write"):
        tbl.connect(path)
    link.stop(place_of(path))


TOO_MANY_FILES = """if True:
    import os, resource, sys
    import tokenbudget_lab as tbl
    from tokenbudget_lab import link
    from tokenbudget_lab.place import place_of
    path, more, embedded = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "embedded"
    with tbl.connect(path, embedded=embedded) as ledger:  # everything is imported once
        ledger.budget("lab", usd=1)
    if not embedded:
        link.stop(place_of(path))
    handles = [os.open("/dev/null", os.O_RDONLY) for _ in range(60)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(handles) + 1 + more, 4096))
    try:
        tbl.connect(path, embedded=embedded).close()
        print("opened")
    except tbl.TokenBudgetError as error:
        print(type(error).__name__, error)
    os._exit(0)
"""


@pytest.mark.parametrize("how", ["embedded", "keeper"])
def test_too_many_open_files_are_named_as_that(tmp_path: Path, how: str) -> None:
    """With as many left as it takes to get a little further each time: the lock, the owner, the heads, the file, its log."""
    path = tmp_path / "spend.duckdb"
    ends = []
    for more in range(8):
        command = [sys.executable, "-c", TOO_MANY_FILES, str(path), str(more), how]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        ends.append(done.stdout)
    refused = [end for end in ends if end != "opened\n"]
    assert refused
    assert all(end.startswith("LedgerUnavailable") and "too many files are open" in end for end in refused), refused
    assert not list(tmp_path.glob("spend.duckdb.d/damaged-*"))
    link.stop(place_of(path))


def test_who_owns_the_file_is_named_to_whoever_comes_second(tmp_path: Path) -> None:
    """And is not disturbed."""
    with tbl.connect(tmp_path / "spend.duckdb", embedded=True) as ledger:
        lab = ledger.budget("lab", usd=1)
        with pytest.raises(tbl.LedgerBusy) as busy:
            opened(tmp_path / "spend.duckdb")
        assert busy.value.path == str(tmp_path / "spend.duckdb")
        lab.record(usd="0.30").result()
    opened(tmp_path / "spend.duckdb")


@pytest.mark.parametrize(
    ("kind", "refused"), [("nfs4", True), ("fuse.sshfs", True), ("ext4", False), ("fuse.gvfsd-fuse", False)]
)
def test_a_network_share_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, *, refused: bool) -> None:
    """Locks and syncs do not hold there; the longest mount point above the file counts."""
    share = tmp_path / "a share"
    share.mkdir()
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/vda / ext4 rw 0 0\nhost:/home {str(share).replace(' ', chr(92) + '040')} {kind} rw 0 0\n")
    monkeypatch.setattr(place_module, "MOUNTS", mounts)
    opened(tmp_path / "local.duckdb")
    if refused:
        with pytest.raises(tbl.NotALedger, match="network share"):
            opened(share / "spend.duckdb")
        assert list(share.iterdir()) == []
    else:
        opened(share / "spend.duckdb")


# --- what is prepared in the folder ------------------------------------------------------------------------------------------

PREPARED = ["lock", "key", "heads", "snapshot", "owner.json", "checkpointing"]


@pytest.mark.parametrize("embedded", [True, False], ids=["embedded", "keeper"])
@pytest.mark.parametrize("kind", ["symlink", "pipe", "folder"])
@pytest.mark.parametrize("name", PREPARED)
@pytest.mark.timeout(60)
def test_what_somebody_has_prepared_beside_it_is_neither_followed_nor_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str, *, embedded: bool
) -> None:
    """A symbolic link, a pipe or a folder in the place of the lock, the key …: a named error, or it is replaced.

    What a link leads to is not touched, and nobody hangs.
    """
    monkeypatch.setattr(link, "CONNECT_S", 3.0)
    monkeypatch.setenv("TOKENBUDGET_KEEPER_LINGER_S", "0.1")
    place = place_of(tmp_path / "spend.duckdb")
    victim = tmp_path / "victim"
    victim.write_bytes(b"somebody's own" * 10)
    place.make_folder()
    prepared = place.folder / name
    if kind == "symlink":
        prepared.symlink_to(victim)
    elif kind == "pipe":
        os.mkfifo(prepared)
    else:
        prepared.mkdir()
    try:
        with tbl.connect(place.file, embedded=embedded) as ledger:
            ledger.budget("lab", usd=1).record(usd="0.30").result()
            assert ledger.budget("lab").balance.left_usd == Decimal("0.7")
    except tbl.TokenBudgetError:
        pass
    finally:
        link.stop(place)
    assert victim.read_bytes() == b"somebody's own" * 10


def test_a_runtime_folder_that_is_open_to_others_holds_no_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is where the socket goes when the ledger's path is too long for one."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "run" / "tokenbudget_lab").mkdir(parents=True)
    (tmp_path / "run").chmod(0o700)
    (tmp_path / "run" / "tokenbudget_lab").chmod(0o777)
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    with pytest.raises(tbl.NotALedger, match="open to others"):
        opened(deep / "spend.duckdb", embedded=False)


@pytest.mark.parametrize("heads", [True, False], ids=["with its folder", "without"])
def test_a_file_of_a_newer_duckdb_is_left_as_it_is(tmp_path: Path, *, heads: bool) -> None:
    """It is no damage: another version of DuckDB reads it."""
    path = a_ledger(tmp_path / "spend.duckdb")
    log_of(path).unlink()
    if not heads:
        shutil.rmtree(place_of(path).folder)
    data = bytearray(path.read_bytes())
    data[12:20] = (10**6).to_bytes(8, "little")
    path.write_bytes(data)
    with pytest.raises(tbl.TokenBudgetError):
        opened(path)
    assert path.read_bytes() == data


@pytest.mark.skipif(sys.platform == "darwin", reason="its file names are UTF-8")
@pytest.mark.parametrize("embedded", [True, False])
@pytest.mark.parametrize("how", ["its folder", "itself", "by a link", "from within"])
def test_a_name_that_is_not_utf8_is_refused_before_anything_is_made(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    embedded: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """DuckDB takes no such path; it is said at once, and by no keeper that comes up and goes down again."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    where: Path = folder / "spend.duckdb"
    if how == "itself":
        where = folder.with_name(folder.name + ".duckdb")
    elif how == "by a link":
        where = tmp_path / "link" / "spend.duckdb"
        where.parent.symlink_to(folder)
    elif how == "from within":
        monkeypatch.chdir(folder)
        where = Path("spend.duckdb")
    with pytest.raises(tbl.InvalidValue, match="not UTF-8"):
        opened(where, embedded=embedded)
    assert list(folder.iterdir()) == []
