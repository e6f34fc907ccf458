"""A Ray cluster of two machines on loopback, and what may befall it while a batch runs.

    unshare -n python ray_trial.py FOLDER MODEL KEPT [driver]

Runs ``edgedb batch in.jsonl ray.jsonl`` in FOLDER. After each KEPT records more it kills a worker,
takes a machine away, and with ``driver`` kills that too, so that another one has to go on. Prints
what it did as JSON.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WAIT_SECONDS = 120


def raise_loopback() -> None:
    """What ``ip link set lo up`` does."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH14x", b"lo", 0x1 | 0x40)  # IFF_UP, IFF_RUNNING
        fcntl.ioctl(any_socket, 0x8914, request)  # SIOCSIFFLAGS


def workers(node: Any) -> list[int]:
    """Processes of a machine that answer lines."""
    raylet = next(iter(node.all_processes["raylet"])).process.pid
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == raylet and b"ray::MapWorker" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            pass
    return found


class Driver:
    """A running ``edgedb batch``."""

    def __init__(self, folder: Path, model: str, address: str) -> None:
        self._part = folder / "ray.jsonl.part"
        command = [sys.executable, "-m", "edgedb", "batch", "in.jsonl", "ray.jsonl"]
        command += ["--model", model, "--ray", address, "--parallel", "4"]
        self.process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE)

    @property
    def kept(self) -> int:
        """Records so far."""
        return self._part.read_bytes().count(b"\n") - 1 if self._part.exists() else 0

    def wait_for(self, happened: Callable[[], bool]) -> None:
        """Until that is so; the run must not end before."""
        end = time.monotonic() + WAIT_SECONDS
        while not happened():
            assert self.process.poll() is None, self.process.communicate()[1].decode()
            assert time.monotonic() < end, f"{self.kept} records after {WAIT_SECONDS} s"
            time.sleep(0.01)

    def wait_for_more(self, records: int) -> None:
        """Until so many more are kept."""
        enough = self.kept + records
        self.wait_for(lambda: self.kept >= enough)


def main() -> None:
    """The trial."""
    folder, model, step = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    raise_loopback()
    from ray.cluster_utils import Cluster

    memory = {"object_store_memory": 80 << 20}
    # A machine that is gone is missed after a second in place of fifteen.
    quick = {"health_check_period_ms": 300, "health_check_failure_threshold": 3}
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": quick, **memory}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    other = cluster.add_node(num_cpus=1, **memory)
    seen: dict[str, Any] = {}
    driver = Driver(folder, model, cluster.address)
    nodes = (cluster.head_node, other)
    driver.wait_for(lambda: all(map(workers, nodes)))
    driver.wait_for_more(step)
    seen["workers"] = [len(workers(node)) for node in nodes]
    for pid in workers(cluster.head_node):
        os.kill(pid, signal.SIGKILL)
    seen["worker killed"] = driver.kept
    driver.wait_for_more(step)
    cluster.remove_node(other, allow_graceful=False)
    seen["machine gone"] = driver.kept
    if "driver" in sys.argv[4:]:
        driver.wait_for_more(step)
        driver.process.kill()
        driver.process.wait()
        seen["driver killed"] = driver.kept
        driver = Driver(folder, model, cluster.address)
    said = driver.process.communicate(timeout=WAIT_SECONDS)[1].decode()
    seen["code"], seen["said"] = driver.process.returncode, said.splitlines()[-1]
    cluster.shutdown()
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
