"""How much the tests do: at the size of every day (`make test`), or at the size that the issues name (NFQLB_FULL=1)."""

from __future__ import annotations

import os

FULL = os.environ.get("NFQLB_FULL") == "1"
MIB = 1 << 20

EXAMPLES = 5000 if FULL else 200  # of each property, by hypothesis

TRANSFER = 256 * MIB if FULL else 32 * MIB  # each way, through the director
CONNECTIONS = 200  # at once, by wrk
LOAD_SECONDS = 10 if FULL else 2
HELD = 1000 if FULL else 200  # connections that stay open through a crash
KILLS = 100 if FULL else 3  # of director, holder or both, under each diverter
DATAGRAMS = 4096 if FULL else 48  # of a UDP_SEGMENT sender
GARBLINGS = 500 if FULL else 40  # random damages of a table file
SEQUENCES = 20 if FULL else 6  # of the core against the model
SEQUENCE_STEPS = 10_000 if FULL else 1500  # packets, changes and pauses in each
MACHINE_RUNS = 300 if FULL else 15  # of the stateful machine, 30 steps each
PUBLISHES = 3000 if FULL else 300  # while packets flow
ROUNDS = 300 if FULL else 25  # of packets dealt to several workers at once
CHANGES, CHANGING = (2000, 10.0) if FULL else (90, 1.0)  # of a service under load, and the seconds they may take
SWITCHES, SWITCHING = (100, 10.0) if FULL else (20, 4.0)  # of a service's offload, likewise
RATE = 5_000  # datagrams a second meanwhile; for 20,000 see bench, which comes before other programs
SYNS = 40_000 if FULL else 4000  # each given to four workers at once
