"""The texts on which the estimation's coefficients are fitted and judged: those that ship with Python and Debian.

Nothing is downloaded and nothing of them is kept. `texts(root)` reads what is installed below a root: Python's library,
/usr/include, /usr/share and so on; prose in forty languages comes from the Debian packages named in `PACKAGES`, which can be
installed, or unpacked (`dpkg-deb -x`) below a root of their own. What is missing is left out.

A text is held out by the name of its document, and all translations of one document are on the same side.
"""

# ruff: noqa: INP001, PLC0207, PLR2004, S311, SIM905 - beside scripts; sizes are as they were found; chance without secrecy

from __future__ import annotations

import gettext
import gzip
import hashlib
import html
import json
import random
import re
import zipfile
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGES = (
    "gnome-user-docs installation-guide-amd64 debian-reference-en debian-reference-ja debian-reference-zh-cn debian-faq "
    "debian-faq-ko debian-faq-ru fortunes fortunes-min fortunes-de fortunes-es fortunes-it fortunes-ru fortunes-pl "
    "fortunes-cs fortunes-bg fortunes-br fortunes-zh manpages-vi "
    + " ".join(
        f"firefox-esr-l10n-{name}"
        for name in (
            "ar bn el fa gu-in he hi-in hy-am id ka km kn ko mr my ne-np si ta te th tr ur"  # mostly scripts of their own
        ).split()
    )
)
HELD_OUT = 0.3  # of the documents
ENGLISH, CODE, MADE = "English", "code", "made up"
_ALIKE = {"C": ENGLISH, "en": ENGLISH, "en_GB": ENGLISH, "en_CA": ENGLISH, "pt_BR": "pt", "zh_CN": "zh", "zh_TW": "zh"}
_ALIKE |= {"zh_HK": "zh", "nb": "no", "nn": "no", "hi-in": "hi", "gu-in": "gu", "ne-np": "ne", "hy-am": "hy", "bn_IN": "bn"}
_OWN_SCRIPT = frozenset(
    (
        "ar as be bg bn dz el fa gu he hi hy ja ka kk km kn ko ky mk ml mn mr my ne or pa ps ru si sr ta te th ug uk ur yi zh"
    ).split()
)
_CODE = {  # endings, and the most documents of each kind
    "py": 900, "h": 300, "c": 60, "hpp": 60, "js": 100, "css": 13, "html": 100, "pl": 60, "pm": 100, "sh": 26, "sql": 39,
    "json": 120, "xml": 80, "yaml": 100, "md": 150, "rst": 120, "vim": 60, "tcl": 40, "php": 60, "m4": 17,
}  # fmt: skip
_TAG = re.compile(r"<(?:style|script)\b.*?</(?:style|script)>|<info>.*?</info>|<!--.*?-->|<[^<>]{0,2000}>", re.DOTALL)


class Text(NamedTuple):
    """One piece of one document."""

    group: str  # a language as gettext calls it, or ENGLISH, CODE, MADE
    source: str
    text: str
    held_out: bool


def texts(roots: Iterable[Path], *, most: int = 90) -> Iterator[Text]:
    """Every piece below the roots, the same ones each time.

    Args:
        roots: folders that look like `/`.
        most: documents per source and group.
    """
    for root in roots:
        share = root / "usr/share"
        for source in (_mallard, _guide, _reference, _fortunes, _messages, _packs, _plain, _code):
            found: dict[str, list[tuple[str, Callable[[], str]]]] = {}
            for group, name, read in source(share if source not in {_code, _packs} else root):
                found.setdefault(_ALIKE.get(group, group), []).append((name, read))
            for group, documents in found.items():
                limit = {ENGLISH: 2_000, CODE: 10_000}.get(group, most)
                documents.sort(key=lambda one: _hash(group + one[0]))
                yield from _pieces(group, source.__name__[1:], documents[:limit])
    yield from made()


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "replace")).digest()[:8], "big")


def _pieces(group: str, source: str, documents: list[tuple[str, Callable[[], str]]]) -> Iterator[Text]:
    """One or two pieces of each document, 100 to 12,000 characters, most near a thousand."""
    for name, read in documents:
        try:
            whole = read()
        except (OSError, UnicodeError, ValueError, IndexError, zipfile.BadZipFile):
            continue
        chance = random.Random(_hash(group + name))
        for _ in range(2 if len(whole) > 4_000 else 1):
            size = int(min(12_000, max(100, chance.lognormvariate(7, 1))))
            start = chance.randrange(max(1, len(whole) - size))
            piece = whole[start : start + size].strip()
            if len(piece) >= 100 and _written_in(group, piece):
                yield Text(group, source, piece, held_out(name))


def held_out(name: str) -> bool:
    """Whether a document is on the side that no coefficient has seen."""
    return _hash("held out " + name) % 1000 < HELD_OUT * 1000


def _written_in(group: str, piece: str) -> bool:
    """False for what was never translated into a language with a script of its own."""
    if group.split("@")[0] not in _OWN_SCRIPT or "@latin" in group:
        return True
    return sum(c > "\u02ff" for c in piece) > 0.4 * sum(c.isalpha() for c in piece)


def _prose(marked_up: str) -> str:
    """The words of HTML or XML, paragraphs kept apart."""
    text = html.unescape(_TAG.sub("", marked_up))
    text = re.sub(r"[ \t]*\n[ \t]*", "\n", text)
    return re.sub(r"(?<!\n)\n(?!\n)", " ", re.sub(r"\n{3,}", "\n\n", text))


def _lazy(path: Path, change: Callable[[str], str] = str) -> Callable[[], str]:
    def read() -> str:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return change(data.decode())

    return read


Found = Iterator[tuple[str, str, Callable[[], str]]]


def _mallard(share: Path) -> Found:
    for path in share.glob("help/*/*/*.page"):
        yield path.parts[-3], f"mallard {path.name}", _lazy(path, _prose)


def _guide(share: Path) -> Found:
    for path in share.glob("doc/installation-guide-amd64/*/*.html"):
        yield path.parts[-2], f"guide {path.name}", _lazy(path, _prose)


def _reference(share: Path) -> Found:
    for path in share.glob("debian-reference/*.html"):
        name, language = path.stem.split(".")[0], path.stem.rpartition(".")[2]
        yield language.replace("-", "_").replace("_cn", "_CN"), f"reference {name}", _lazy(path, _prose)
    for path in share.glob("doc/debian/FAQ/**/*.html"):
        language = path.parts[-2] if path.parts[-2] != "FAQ" else "en"
        yield language, f"faq {path.name.split('.')[0]}", _lazy(path, _prose)


def _fortunes(share: Path) -> Found:
    for path in share.glob("games/fortunes/**/*"):
        if path.is_file() and not path.is_symlink() and path.suffix not in {".dat", ".u8"}:
            language = path.parts[-2] if path.parts[-2] != "fortunes" else "en"
            if path.name not in {"brasil", "chinese", "tang300", "song100"} and "off" not in path.parts:
                yield language, f"fortunes {path.name}", _lazy(path, lambda text: text.replace("\n%\n", "\n"))


def _messages(share: Path) -> Found:
    def read(path: Path) -> str:
        with path.open("rb") as file:
            catalogue = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]  # noqa: SLF001
        return "\n".join(text for key, text in catalogue.items() if isinstance(text, str) and key and text != key)

    for path in share.glob("locale/*/LC_MESSAGES/*.mo"):
        if path.stat().st_size > 2_000 and not path.parts[-3].startswith("en@"):
            yield path.parts[-3], f"messages {path.name}", lambda path=path: read(path)


def _packs(root: Path) -> Found:
    """The messages of a browser's language packs, from Fluent files."""
    message = re.compile(r"^(?:[\w-]+ *=|    (?:\.[\w-]+ =)?) *([^\n{}]{20,})$", re.MULTILINE)

    def read(path: Path, part: str) -> str:
        with zipfile.ZipFile(path) as pack:
            return "\n".join(message.findall(pack.read(part).decode()))

    for path in root.glob("usr/lib/firefox-esr/browser/extensions/*.xpi"):
        with zipfile.ZipFile(path) as pack:
            for part in pack.namelist():
                if part.endswith(".ftl"):
                    language = path.name.removeprefix("langpack-").partition("@")[0].partition("-")[0]
                    yield language, f"pack {part.rpartition('/')[2]}", lambda path=path, part=part: read(path, part)


def _plain(share: Path) -> Found:
    """English that people wrote: licences, read-me files, changelogs, news, manual pages."""
    for path in share.glob("common-licenses/*"):
        yield ENGLISH, f"licence {path.name.partition('-')[0]}", _lazy(path)
    for path in [*share.glob("doc/*/*.txt*"), *share.glob("doc/*/README*"), *share.glob("doc/*/NEWS*")]:
        yield ENGLISH, f"doc {path.parts[-2]}", _lazy(path)
    roff = re.compile(r"^[.'].*\n|\\f.|\\(?=-)", re.MULTILINE)
    for path in share.glob("man/man1/*.gz"):
        yield ENGLISH, f"man {path.name}", _lazy(path, lambda text: roff.sub("", text))
    for path in share.glob("man/??/man1/*.gz"):
        yield path.parts[-3], f"man {path.name}", _lazy(path, lambda text: roff.sub("", text))


def _code(root: Path) -> Found:
    for ending, most in _CODE.items():
        paths = [*(root / "usr").rglob(f"*.{ending}")] if (root / "usr/lib/python3.11").exists() else []
        paths = [path for path in paths if path.stat().st_size > 500 and "/site-packages/" not in str(path)]
        paths.sort(key=lambda path: _hash(str(path.relative_to(root))))
        for path in paths[:most]:
            yield CODE, f"code {path.relative_to(root)}", _lazy(path)


# --- made up -------------------------------------------------------------------------------------------------------------


def made() -> Iterator[Text]:
    """What no document has much of, and prompts do: tables, logs, hashes, JSON messages, runs of one character."""
    for number in range(40):
        chance = random.Random(number)
        for name, make in _MADE.items():
            yield Text(MADE, name, make(chance)[: chance.randint(300, 4_000)], held_out(f"made {number}"))


def _table(chance: random.Random) -> str:
    rows = (f"{n},{chance.random():.4f},{chance.randint(0, 10**6)},2026-11-{chance.randint(1, 30):02}\n" for n in range(200))
    return "id,score,amount,day\n" + "".join(rows)


def _log(chance: random.Random) -> str:
    levels = ("INFO", "WARNING", "ERROR", "DEBUG")
    return "".join(
        f"2026-11-{chance.randint(1, 30):02}T{chance.randint(0, 23):02}:"
        f"{chance.randint(0, 59):02}:07.{chance.randint(0, 999):03}Z "
        f"{chance.choice(levels)} worker-{chance.randint(1, 99)} request {chance.getrandbits(64):016x} took "
        f"{chance.random() * 900:.1f} ms (status={chance.choice((200, 404, 500))})\n"
        for _ in range(60)
    )


def _messages_json(chance: random.Random) -> str:
    words = "please answer the question about model cost budget tokens in one short sentence with your reason".split()
    turns = [
        {"role": chance.choice(("user", "assistant")), "content": " ".join(chance.choices(words, k=chance.randint(4, 40)))}
        for _ in range(25)
    ]
    return json.dumps(turns, indent=chance.choice((None, 2)))


def _characters(first: int, last: int) -> Callable[[random.Random], str]:
    return lambda chance: "".join(chr(chance.randint(first, last)) for _ in range(4_000))


_MADE: dict[str, Callable[[random.Random], str]] = {
    "table": _table,
    "log": _log,
    "messages": _messages_json,
    "hex": lambda chance: chance.randbytes(2_000).hex(),
    "base64": lambda chance: b64encode(chance.randbytes(3_000)).decode(),
    "numbers": lambda chance: " ".join(str(chance.randint(0, 10 ** chance.randint(1, 9))) for _ in range(900)),
    "spaces": lambda chance: "".join(" " * chance.randint(1, 30) + chance.choice("ab\n.1") for _ in range(300)),
    "one": lambda chance: chance.choice("aeX0 .-=_*\n\t") * 4_000,
    "ascii": _characters(33, 126),
    "letters": lambda chance: "".join(chance.choice("abcdefghijklmnopqrstuvwxyz ") for _ in range(4_000)),
    "latin": _characters(0xA0, 0x24F),
    "symbols": _characters(0x2010, 0x27BF),
    "cjk": _characters(0x4E00, 0x9FFF),
    "emoji": _characters(0x1F300, 0x1F6FF),
    "any": _characters(0x300, 0xD7FF),
    "rare": _characters(0xE000, 0x2FFFF),
    "control": _characters(0, 31),
}
