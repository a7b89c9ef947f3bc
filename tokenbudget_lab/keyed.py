"""Keys of rows and calls, by which what was done and paid is found again and not done twice.

A key that would never be found again is refused: one that cannot be hashed, that is missing, or that differs in its type from
those that are kept.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from .errors import InvalidType, InvalidValue, told


class Keys:
    """The keys that were seen so far, each with its place.

    Args:
        what: what has the keys: `rows`, `keys`.

    Examples:
        >>> seen = Keys("keys")
        >>> seen.add(0, "a"), seen.add(1, "b")
        ('a', 'b')
        >>> seen.add(2, "a")
        Traceback (most recent call last):
        ...
        tokenbudget_lab.errors.InvalidValue: keys[2]: is 'a', as keys[0] is; a key tells one from all others
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._places: dict[Any, int] = {}

    def add(self, place: int, key: Any) -> Any:
        """Take a key.

        Raises:
            InvalidType: it cannot be hashed.
            InvalidValue: it is missing, or another one is the same.
        """
        where = f"{self._what}[{place}]"
        try:
            first = self._places.setdefault(key, place)
        except TypeError:
            raise InvalidType(where, f"has a key of {type(key).__name__}, which cannot be hashed; a text would do") from None
        if key is None or (isinstance(key, float) and key != key):  # noqa: PLR0124 - so NaN is told
            raise InvalidValue(where, f"has no key, but {key}: it could not be found again")
        if first != place:
            raise InvalidValue(where, f"is {told(key)}, as {self._what}[{first}] is; a key tells one from all others")
        return key


def check_kinds(argument: str, kept: Collection[Any], key: Any) -> None:
    """Refuse keys that were kept as texts and are none here, or the other way round: none would be found, and all paid again.

    Examples:
        >>> check_kinds("done", ["1", "2"], 3)
        Traceback (most recent call last):
        ...
        tokenbudget_lab.errors.InvalidType: done: its keys are texts, such as '1'; these here are int, such as 3: none would ...
    """
    if not kept:
        return
    kinds = {isinstance(each, str) for each in kept}
    if isinstance(key, str) in kinds:
        return
    first = next(iter(kept))
    theirs = "texts" if kinds == {True} else type(first).__name__
    raise InvalidType(
        argument,
        f"its keys are {theirs}, such as {told(first)}; these here are {type(key).__name__}, such as {told(key)}: "
        "none would be found, and all be paid again. JSON makes texts of all keys",
    )
