"""Sets of which a changed copy costs what changed, and of which the difference does, too.

Strategy: the members lie in SHARDS frozensets, by their hash. A changed copy shares all of them but those that changed;
so two sets that come from each other are compared shard by shard, by identity first. Everything else is what
collections.abc.Set makes of it: a Pool equals a frozenset of the same members.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Set
from itertools import chain
from typing import Any, TypeVar

SHARDS = 256
T_co = TypeVar("T_co", covariant=True)
Shard = frozenset[Any]


def _as_it_is(one: Shard) -> Shard:
    return one


_NONE: Shard = frozenset()
_EMPTY = (_NONE,) * SHARDS


class Pool(Set[T_co]):
    __slots__ = ("_count", "_shards")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, members: Iterable[T_co] = ()) -> None:
        self._shards = _put(_EMPTY, members, ())
        self._count = sum(map(len, self._shards))

    def changed(self, added: Iterable[Any], removed: Iterable[Any]) -> Pool[T_co]:
        """A copy with some more members and without some others; who is in both is in it."""
        return _pool(_put(self._shards, added, removed))

    def __contains__(self, member: object) -> bool:
        return member in self._shards[hash(member) % SHARDS]

    def __iter__(self) -> Iterator[T_co]:
        return chain.from_iterable(self._shards)

    def __len__(self) -> int:
        return self._count

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Pool):
            return self._shards == other._shards
        return super().__eq__(other)

    def __or__(self, other: Set[Any]) -> Pool[Any]:
        return self._with(other, lambda one, more: one if more <= one else more if one <= more else one | more)

    def __and__(self, other: Set[Any]) -> Pool[T_co]:
        return self._with(other, lambda one, more: one if one <= more else one & more)

    def __sub__(self, other: Set[Any]) -> Pool[T_co]:
        return self._with(other, lambda one, more: one - more, lambda one: _NONE)

    def __repr__(self) -> str:
        return f"Pool({set(self)!r})"

    def _with(
        self, other: Set[Any], both: Callable[[Shard, Shard], Shard], same: Callable[[Shard], Shard] = _as_it_is
    ) -> Pool[Any]:
        theirs = other._shards if isinstance(other, Pool) else Pool(other)._shards
        if theirs == self._shards:  # most sets, in most changes
            return self if same is _as_it_is else Pool()
        pairs = zip(self._shards, theirs, strict=True)
        return _pool(tuple([same(one) if one is more else both(one, more) for one, more in pairs]))


def _pool(shards: tuple[Shard, ...]) -> Pool[Any]:
    made: Pool[Any] = Pool.__new__(Pool)
    made._shards, made._count = shards, sum(map(len, shards))
    return made


def _put(shards: tuple[Shard, ...], added: Iterable[Any], removed: Iterable[Any]) -> tuple[Shard, ...]:
    touched: dict[int, set[Any]] = {}
    for members, put in ((removed, False), (added, True)):
        for member in members:
            at = hash(member) % SHARDS
            if at not in touched:
                touched[at] = set(shards[at])
            (touched[at].add if put else touched[at].discard)(member)
    if not touched:
        return shards
    new = list(shards)
    for at, found in touched.items():
        new[at] = frozenset(found)
    return tuple(new)
