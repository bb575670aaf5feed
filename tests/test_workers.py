"""Drawing over processes: order, failures, deaths. Nothing heavy is imported here: the workers
import this file too.
"""

import os
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool

import pytest
from conftest import ROOT

from data_pipelines.workers import ONE_THREAD, map_ranges


def echo(start, stop):
    time.sleep(0.2 if start == 0 else 0)
    return start, stop, {name: os.environ.get(name) for name in ONE_THREAD}


def refuse(start, stop):
    raise ValueError(f"refuse: start must be small, got {start}")


def die(start, stop):
    os._exit(7)


def test_results_keep_the_order_of_the_ranges_and_workers_have_one_thread():
    ranges = [(0, 5), (5, 10), (10, 12)]
    drawn = list(map_ranges(echo, ranges, num_workers=2))
    assert [(start, stop) for start, stop, _ in drawn] == ranges
    assert all(environment == ONE_THREAD for _, _, environment in drawn)


def test_an_error_in_a_worker_reaches_the_caller():
    with pytest.raises(ValueError, match="refuse: start must be small, got 3"):
        list(map_ranges(refuse, [(3, 4)], num_workers=1))


def test_a_dead_worker_is_noticed():
    with pytest.raises(BrokenProcessPool, match="terminated abruptly"):
        list(map_ranges(die, [(0, 1)], num_workers=1))


PARENT = """
import os, time
from data_pipelines.workers import map_ranges
from test_workers import report_and_wait
if __name__ == "__main__":
    list(map_ranges(report_and_wait, [(0, 1)], num_workers=1))
"""


def report_and_wait(start, stop):
    print(os.getpid(), flush=True)
    time.sleep(60)


def _is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as status:
        return status.read().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(
    not os.path.isdir("/proc/self"),
    reason="needs /proc to tell a running process from one that only waits to be collected",
)
def test_workers_do_not_outlive_a_killed_parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    with subprocess.Popen(
        [sys.executable, script], env=environment, stdout=subprocess.PIPE, text=True
    ) as parent:
        worker = int(parent.stdout.readline())
        parent.kill()
    for _ in range(100):
        if not _is_running(worker):
            break
        time.sleep(0.05)
    assert not _is_running(worker)
