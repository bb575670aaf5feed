"""How processes begin: without the user's script, and not by a fork that comes too late."""

import subprocess
import sys

import pytest
from conftest import ROOT

HEAD = "import math, multiprocessing\nfrom concurrent.futures import ProcessPoolExecutor\n"
PROGRAMS = {  # a script without `if __name__ == "__main__"`; what it prints, what its error says
    "our own processes do not run the script again": (
        "from astrogen.processes import fresh_context\n"
        "with ProcessPoolExecutor(2, mp_context=fresh_context('run')) as pool:\n"
        "    print(*pool.map(math.sqrt, [1, 4]), __name__)\n"
        "assert __file__.endswith('script.py')",
        "1.0 2.0 __main__\n",
        "",
    ),
    "a worker of a pool may not start others": (
        "from astrogen.processes import fresh_context\n"
        "with multiprocessing.get_context('fork').Pool(1) as pool:\n"
        "    pool.apply(fresh_context, ['run'])",
        "",
        "InputError: run: a process that starts others must not be daemonic, got .*ProcessPoolExecutor",
    ),
    "a process that imports its parent's script may not start others": (
        "from astrogen.processes import fresh_context\n"
        "multiprocessing.current_process()._inheriting = True\n"
        "fresh_context('run')",
        "",
        "InputError: run: .* while it imports its parent's script, .* if __name__ == '__main__':",
    ),
    "a fork after the first call is refused": (
        "from astrogen.processes import refuse_fork\n"
        "refuse_fork('deconvolve')\n"
        "with multiprocessing.get_context('fork').Pool(1) as pool:\n"
        "    pool.apply(refuse_fork, ['deconvolve'])",
        "",
        "InputError: deconvolve: a process must not be forked after TensorFlow ran, .*'spawn'",
    ),
    "a fork before the first call is not": (
        "from astrogen.processes import refuse_fork\n"
        "with multiprocessing.get_context('fork').Pool(1) as pool:\n"
        "    print(pool.apply(refuse_fork, ['deconvolve']))",
        "None\n",
        "",
    ),
}


@pytest.mark.parametrize("program, printed, words", PROGRAMS.values(), ids=PROGRAMS)
def test_a_script_without_a_guard(tmp_path, program, printed, words):
    script = tmp_path / "script.py"
    script.write_text(HEAD + program)
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert done.stdout == printed, done.stderr
    last = done.stderr.strip().splitlines()[-1:]
    assert (done.returncode == 0) == (not words)
    if words:
        with pytest.raises(ValueError, match=words):
            raise ValueError(*last)
