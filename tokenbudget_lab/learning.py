"""What measured calls teach an estimate: one scale, and how far it is off.

A pair is an unscaled estimate and what the provider measured. Fewer than five teach nothing; no pair, however wrong, moves the
scale out of its bounds; and a few odd ones among many do not move it at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from .errors import InvalidType, InvalidValue

if TYPE_CHECKING:
    import polars as pl

ENOUGH = 5  # pairs before which nothing is corrected
KEPT = 200  # of the newest pairs; a label's prompts may change
LABEL, ESTIMATE = "label", "estimate"  # tags of a call
_LOWEST, _HIGHEST = 0.3, 3.0
_LEFT_OUT = 5  # one in five is left out at each end
_COVERED = 0.9
_LEAST = 0.01
# A call's own tag says what was estimated before any scale. Without it only the first few calls say something, as no scale was
# known yet; and what they held may have been more than the estimate, so that they can raise it only.
_PAIRS = """
with measured as (
    select c.seq, c.input_tokens, try_cast(c.tags['estimate'] as bigint) as estimated,
           try_cast(e.detail ->> 'input_tokens' as bigint) as held
    from calls c left join events e on e.reservation = c.reservation and e.kind = 'reserved'
    where c.model = $model and c.basis = 'measured' and c.requests = 1 and c.input_tokens > 0
      and ($label is null or c.tags['label'] = $label)
),
tagged as (select seq, estimated, input_tokens from measured where estimated > 0 order by seq desc limit $kept),
plain as (
    select seq, held as estimated, greatest(input_tokens, held) as input_tokens
    from measured where estimated is null and held > 0 order by seq limit $enough
)
select estimated, input_tokens from (
    select * from tagged union all select * from plain where (select count(*) from tagged) < $enough
) order by seq
"""


class Pair(NamedTuple):
    """An estimate before any scale, and what the provider measured; in tokens, both above 0."""

    estimated: float
    measured: float


class Learned(NamedTuple):
    """What pairs have taught.

    Args:
        scale: what an estimate is multiplied by.
        margin: how far it may be off then, as a part of it; `None` where too little was seen.
        calls: how many pairs it is from.
    """

    scale: float
    margin: float | None
    calls: int


NOTHING = Learned(1.0, None, 0)


class Sql(Protocol):
    """A ledger that can be asked in SQL."""

    def sql(self, query: str, **parameters: Any) -> pl.DataFrame:
        """Answer one SELECT."""


def pair(estimated: object, measured: object) -> Pair:
    """Check a pair.

    Raises:
        InvalidType: no numbers.
        InvalidValue: not above 0, or not finite.
    """
    for name, value in (("estimated", estimated), ("measured", measured)):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InvalidType(name, f"{type(value).__name__} is no number of tokens")
        if not 0 < value < 2**53:
            raise InvalidValue(name, f"{value!r} tokens teach nothing; give a number above 0")
    assert isinstance(estimated, (int, float))  # noqa: S101 - tells the type checker
    assert isinstance(measured, (int, float))  # noqa: S101 - as above
    return Pair(float(estimated), float(measured))


def learned(pairs: Sequence[Pair], margin: float) -> Learned:
    """The scale of what was seen, and nine tenths of what is left.

    The scale is the sum of the measured tokens over that of the estimated ones, without the fifth of the pairs with the lowest
    ratios and the fifth with the highest.

    Args:
        pairs: the newest ones last.
        margin: of an estimate of this family of which nothing is known.

    Examples:
        >>> learned([Pair(100, 127), Pair(200, 254), Pair(50, 64), Pair(300, 381), Pair(90, 114)], 0.12).scale
        1.27
    """
    pairs = pairs[-KEPT:]
    if len(pairs) < ENOUGH:
        return Learned(1.0, None, len(pairs))
    by_ratio = sorted(pairs, key=lambda one: one.measured / one.estimated)
    out = len(pairs) // _LEFT_OUT
    middle = by_ratio[out : len(pairs) - out]
    ratio = sum(one.measured for one in middle) / sum(one.estimated for one in middle)
    scale = min(_HIGHEST, max(_LOWEST, ratio))
    return Learned(scale, _margin(pairs, scale, margin), len(pairs))


def _margin(pairs: Sequence[Pair], scale: float, before: float) -> float:
    """What nine residuals in ten stay under, and a next one would too; of few pairs, not less than chance allows."""
    residuals = sorted(abs(one.measured / (one.estimated * scale) - 1) for one in pairs)
    rank = math.ceil(_COVERED * (len(residuals) + 1))
    floor = max(_LEAST, before / math.sqrt(len(residuals)))
    if rank <= len(residuals):
        return max(floor, residuals[rank - 1])
    return max(floor, residuals[-1] * (1 + 1 / math.sqrt(len(residuals))))


def pairs_of(ledger: Sql, model: str, label: str | None) -> list[Pair]:
    """What a ledger knows: measured calls of this model and label that say what was estimated for them.

    Args:
        ledger: what `connect` gives.
        model: as it was reserved with.
        label: the value of the calls' tag `label`; `None` for all of them.

    Returns:
        The oldest first; at most the newest 200.
    """
    rows: Iterable[tuple[Any, ...]] = ledger.sql(_PAIRS, model=model, label=label, kept=KEPT, enough=ENOUGH).rows()
    return [Pair(float(estimated), float(measured)) for estimated, measured in rows]
