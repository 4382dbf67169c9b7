"""Events: in order, none lost without a word, and told to those who listen."""

from __future__ import annotations

import asyncio
import threading

from nfqlb.control.reconcile import Step
from nfqlb.feed import KEPT, STEPS_MAX, Event, Feed


def told(events: list[Event]) -> list[str]:
    return [event.message for event in events]


def test_events_are_numbered_and_kept_in_order() -> None:
    feed = Feed()
    for word in ("a", "b", "c"):
        feed.say("changed", word, 7)
    everything = feed.since(0)
    assert told(everything) == ["a", "b", "c"]
    assert told(feed.since(everything[0].number)) == ["b", "c"]
    assert feed.since(everything[-1].number) == []
    assert everything[1].number == everything[0].number + 1
    assert everything[0].revision == 7


def test_whoever_was_away_too_long_is_told_of_the_gap() -> None:
    feed = Feed()
    feed.say("changed", "first")
    number = feed.since(0)[0].number
    for at in range(KEPT + 1):
        feed.say("changed", str(at))
    found = feed.since(number)
    assert [found[0].kind, found[1].kind, len(found)] == ["gap", "changed", KEPT + 1]
    assert told(feed.since(found[1].number))[0] == "2"  # from there on nothing is missing


def test_numbers_grow_over_a_restart() -> None:
    before, after = Feed(1000.0), Feed(1001.0)
    before.say("changed", "a")
    after.say("changed", "b")
    found = after.since(before.since(0)[-1].number)
    assert [event.kind for event in found] == ["gap", "changed"]


def test_a_large_change_is_cut() -> None:
    feed = Feed()
    feed.say("changed", "revision 2", steps=[Step("add", "service", str(at)) for at in range(STEPS_MAX + 5)])
    (event,) = feed.since(0)
    assert (len(event.steps), event.message) == (STEPS_MAX, "revision 2; 5 more steps")


def test_a_listener_hears_what_another_thread_says() -> None:
    feed = Feed()
    feed.say("changed", "before")

    async def listen() -> list[str]:
        heard = []
        async for event in feed.follow(0):
            heard.append(event.message)
            if event.message == "before":
                threading.Thread(target=lambda: [feed.say("real", word) for word in ("one", "two")]).start()
            if len(heard) == 3:
                break
        return heard

    assert asyncio.run(asyncio.wait_for(listen(), 10)) == ["before", "one", "two"]
