"""Gives libFuzzer a target, inside the interpreter that has it (python.c): `python -m tests.fuzz.engine TARGET PACKETS
[what libFuzzer takes]...` ends well after so many packets, and with libFuzzer's own code at the first finding.

How many packets and executions there were, as they were counted, it writes to standard error now and then, and to
standard output at the end.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import traceback
from collections.abc import Callable

from tests.fuzz.targets import TARGETS

TOLD = 1000  # executions
WORLDS = 32  # that wait for the garbage collector: each is a circle of half a megabyte


def callback(target: Callable[[bytes], int], wanted: int) -> Callable[[object, int], int]:
    """What libFuzzer calls with each input; it never returns to it once enough packets went through."""
    packets = executions = 0

    def one_input(data: object, size: int) -> int:
        nonlocal packets, executions
        try:
            packets += target(ctypes.string_at(data, size))
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os.abort()  # libFuzzer keeps the input
        executions += 1
        if executions % WORLDS == 0:
            gc.collect()
        if executions % TOLD == 0 or packets >= wanted:
            os.write(2, f"{packets} packets, {executions} executions\n".encode())
        if packets >= wanted:
            os.write(1, f"{packets} packets, {executions} executions\n".encode())
            os._exit(0)
        return 0

    return one_input


def main(name: str, wanted: int, options: list[str]) -> int:
    signature = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
    target = signature(callback(TARGETS[name], wanted))
    TARGETS[name](b"")  # what is made once, is made now
    gc.collect()
    gc.freeze()
    arguments = [option.encode() for option in (sys.executable, *options)]
    count = ctypes.c_int(len(arguments))
    vector = ctypes.pointer((ctypes.c_char_p * (count.value + 1))(*arguments, None))
    driver = ctypes.PyDLL(None).LLVMFuzzerRunDriver  # keeps the GIL: nobody else is here
    return int(driver(ctypes.byref(count), ctypes.byref(vector), target))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
