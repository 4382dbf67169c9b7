"""Builds the data path: every ext/nfqlb/_core/X.pyx becomes the module nfqlb._core.X.

Strategy: the .pyx and .pxd files lie in ext/nfqlb/_core so that the path of a cimport equals the path of an import;
the compiled modules land beside their stubs in src/nfqlb/_core, generated C and object files in build/. One variable
of the environment chooses how: NFQLB_BUILD=release (the default), debug (asserts, line trace, no optimisation),
sanitize (AddressSanitizer and UndefinedBehaviorSanitizer), fuzz (the same, and coverage for libFuzzer; CC=clang) or
none (the Makefile compiles apart from pip, and so only what changed). Each way has its own folder in build/.
bench/loops.pyx is compiled in place only, and never installed.
offload.bpf.c becomes a program for the kernel where clang is found (CLANG names one); without it all works but the
offload.
Everything else about the project stands in pyproject.toml.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from Cython.Build import cythonize
from Cython.Compiler import Options
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

COVERED = "tests/fuzz/covered.txt"
HEADER = "ext/nfqlb/_core/offload.h"
PROGRAM = Path("ext/nfqlb/_core/offload.bpf.c")
CLANGS = ("clang", *(f"clang-{version}" for version in range(22, 13, -1)))
COVERAGE = ["-fsanitize=fuzzer-no-link", f"-fsanitize-coverage-allowlist={COVERED}"]
# -fwrapv, which Python hands down, would define what shall be found
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-wrapv", "-fno-omit-frame-pointer"]
WAYS = {
    # way: (compiler flags, macros, further Cython directives)
    "release": (["-O3"], [], {}),  # asserts stay: all of ours run at import
    "debug": (["-O0", "-g3"], [("CYTHON_TRACE_NOGIL", "1")], {"linetrace": True}),
    "sanitize": (["-O1", "-g", *SANITIZERS], [], {}),
    "fuzz": (["-O1", "-g", *SANITIZERS, *COVERAGE], [], {}),
    "none": ([], [], {}),
}
WARNINGS = [
    "-Wall",
    "-Wextra",
    # what Cython itself writes; unused names in our code are found by its warn.unused
    "-Wno-unused-parameter",
    "-Wno-unused-function",
    "-Wno-unused-variable",
    "-Wno-missing-field-initializers",
    "-Wno-cast-function-type",
]
if Path(".git").exists():  # a checkout; elsewhere a new compiler's new warning must not end an installation
    WARNINGS.append("-Werror")
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
    "nonecheck": False,
    "auto_pickle": False,
    "autotestdict": False,
    "freethreading_compatible": True,
    "warn.unused": True,
}

way = os.environ.get("NFQLB_BUILD", "release")
if way not in WAYS:
    raise SystemExit(f"NFQLB_BUILD={way!r}: use one of {', '.join(WAYS)}")
flags, macros, further = WAYS[way]
link = [flag for flag in flags if flag.startswith("-fsanitize")]
how = {
    "define_macros": macros,
    "extra_compile_args": flags + WARNINGS,
    "extra_link_args": link,
    "depends": ["setup.py", COVERED, HEADER],  # the flags
    "include_dirs": [str(Path(HEADER).parent.absolute())],
}


class BuildExt(build_ext):
    def finalize_options(self):
        # not in pyproject.toml: an editable installation of more than src costs every start a search in Python
        self.distribution.package_dir["bench"] = "bench"
        super().finalize_options()

    def run(self):
        super().run()
        if sources:
            into = self.get_ext_fullpath(f"nfqlb._core.{PROGRAM.name.partition('.')[0]}")
            self.compile_program(Path(into).with_name("offload.bpf.o"))

    def compile_program(self, into):
        """The offload's program; -mcpu=v3 has the atomic operations that it needs (Linux 5.12)."""
        clang = next(filter(None, map(shutil.which, [os.environ.get("CLANG", ""), *CLANGS])), None)
        if clang is None:
            into.unlink(missing_ok=True)
            print("no clang: built without the offload (apt-get install clang-16)", file=sys.stderr)
            return
        own = [f"-I/usr/include/{sysconfig.get_config_var('MULTIARCH')}", "-O2", "-fno-strict-aliasing"]
        command = [clang, "-target", "bpf", "-mcpu=v3", *own, "-Wall", "-Wextra", "-c", str(PROGRAM), "-o", str(into)]
        subprocess.run(command, check=True)


Options.warning_errors = True
sources = sorted(Path("ext/nfqlb/_core").glob("*.pyx")) if way != "none" else []
extensions = [Extension(f"nfqlb._core.{source.stem}", [str(source)], **how) for source in sources]
if sources and "--inplace" in sys.argv:
    extensions.append(Extension("bench.loops", ["bench/loops.pyx"], libraries=["netfilter_queue"], **how))
setup(
    cmdclass={"build_ext": BuildExt},
    ext_modules=cythonize(
        extensions,
        include_path=["ext"],
        build_dir=f"build/{way}/cython",
        compiler_directives=DIRECTIVES | further,
    ),
    options={"build": {"build_base": f"build/{way}"}, "build_ext": {"parallel": os.cpu_count()}},
)
