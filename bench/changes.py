"""Changes under load: `python -m bench.changes`.

2,000 changes (a real server added, given another weight, deleted) within 10 s on the very service that 20,000 numbered
datagrams a second go to; each is read back, and each side says which numbers it saw. Both diverters in turn; then the
same with 10 changes a second that take the service's offload off and put it on again. All that has a part in it goes
before other programs. Nothing dropped from the figures. Exit code 1 when a datagram was lost in any round, or the
median took too long.
"""

from __future__ import annotations

import sys

from bench import figures, share
from netns import changes
from netns.topology import Net

ROUNDS = 5
WITHIN, RATE = 10.0, 20_000
WAYS = {  # of changing: the arguments, how many changes, each by what
    "nft": (["--diverter", "nft"], 2000, changes.change),
    "iptables": (["--diverter", "iptables"], 2000, changes.change),
    "offload": (["--offload", "auto"], 100, changes.switch_offload),
}


def main() -> int:
    share.alone()
    rounds: list[dict[str, object]] = []
    for number in range(ROUNDS):
        for way in (reversed if number % 2 else iter)(WAYS):
            args, count, step = WAYS[way]
            with Net(servers=3, web=False) as net:
                outcome = changes.run(
                    net, *args, changes=count, rate=RATE, within=WITHIN, hasten=share.hasten, step=step
                )
            rounds.append({"way": way, **outcome._asdict()})
    about = figures.circumstances()
    path = figures.keep("changes", {"about": about, "rounds": rounds})
    print(figures.heading(about, f"{ROUNDS} rounds a way, median (spread)"))
    sheet = figures.Sheet()
    for way in WAYS:
        ours = [one for one in rounds if one["way"] == way]
        for name, form, most in (("seconds", ".3f", WITHIN), ("lost_there", ",.0f", 0), ("lost_back", ",.0f", 0)):
            values = [float(str(one[name])) for one in ours]
            sheet.figure(f"{way}, {name.replace('_', ' ')}", values, form, most=most, each=name != "seconds")
        print(f"{way + ', datagrams sent':<32} {sum(int(str(one['sent'])) for one in ours):>9,}")
    return sheet.end(path)


if __name__ == "__main__":
    sys.exit(main())
