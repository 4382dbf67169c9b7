"""Changes under load: `python -m bench.changes`.

2,000 changes (a real server added, given another weight, deleted) within 10 s on the very service that 20,000 numbered
datagrams a second go to; each is read back, and each side says which numbers it saw. All that has a part in it goes
before other programs. Both diverters in turn, nothing dropped from the figures. Exit code 1 when a datagram was lost in
any round, or the median took too long.
"""

from __future__ import annotations

import sys

from bench import figures, share
from netns import Net, changes

ROUNDS = 5
CHANGES, WITHIN, RATE = 2000, 10.0, 20_000
DIVERTERS = ("nft", "iptables")


def main() -> int:
    share.alone()
    rounds: list[dict[str, object]] = []
    for number in range(ROUNDS):
        for diverter in DIVERTERS[number % 2 :] + DIVERTERS[: number % 2]:
            with Net(servers=3, web=False) as net:
                outcome = changes.run(
                    net, "--diverter", diverter, changes=CHANGES, rate=RATE, within=WITHIN, hasten=share.hasten
                )
            rounds.append({"diverter": diverter, **outcome._asdict()})
    about = figures.circumstances()
    path = figures.keep("changes", {"about": about, "rounds": rounds})
    print(figures.heading(about, f"{ROUNDS} rounds of {CHANGES} changes, median (spread)"))
    sheet = figures.Sheet()
    for diverter in DIVERTERS:
        ours = [one for one in rounds if one["diverter"] == diverter]
        for name, form, most in (("seconds", ".3f", WITHIN), ("lost_there", ",.0f", 0), ("lost_back", ",.0f", 0)):
            values = [float(str(one[name])) for one in ours]
            sheet.figure(f"{diverter}, {name.replace('_', ' ')}", values, form, most=most, each=name != "seconds")
        print(f"{diverter + ', datagrams sent':<32} {sum(int(str(one['sent'])) for one in ours):>9,}")
    return sheet.end(path)


if __name__ == "__main__":
    sys.exit(main())
