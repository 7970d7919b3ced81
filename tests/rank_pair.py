"""Two processes that are started once and train together whatever they are given, as two that torchrun has started do."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

WAIT_SECONDS = 300


class RankPair:
    """Two ranks; each runs what :meth:`run` sends, in a process group of its own.

    Args:
        folder: For results and the processes' output.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._number = folder, 0
        self._ranks: list[subprocess.Popen[str]] = []

    def run(self, *overrides: str, by_rank: tuple[Sequence[str], Sequence[str]] = ((), ())) -> list[str]:
        """Run a configuration on both ranks.

        Returns:
            For each rank "" if it finished, else the traceback of its error.
        """
        if not self._ranks or any(rank.poll() is not None for rank in self._ranks):
            self._start()
        self._number += 1
        results = [self._folder / f"{self._number}.{rank}.json" for rank in range(2)]
        port = _free_port()
        for process, own, result in zip(self._ranks, by_rank, results, strict=True):
            assert process.stdin is not None
            work = {"overrides": [*overrides, *own], "port": port, "result": str(result)}
            process.stdin.write(json.dumps(work) + "\n")
            process.stdin.flush()
        deadline = time.monotonic() + WAIT_SECONDS
        while not all(result.exists() for result in results):
            ended = any(rank.poll() is not None for rank in self._ranks)
            if ended or time.monotonic() > deadline:
                self.close()
                raise RuntimeError(f"the ranks {'died' if ended else 'hang'}:\n{self.output()[-4000:]}")
            time.sleep(0.02)
        return [json.loads(result.read_text()) for result in results]

    def _start(self) -> None:
        self.close()
        launchers = ("SLURM_", "TORCHELASTIC", "LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_", "ECHO_PL_")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(launchers)}
        for rank in range(2):
            environment = clean | {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1",
                "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "rank-pair", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join(sys.path),
            }  # fmt: skip
            with (self._folder / f"rank-{rank}.log").open("a") as log:
                command = [sys.executable, str(Path(__file__).resolve())]
                self._ranks.append(
                    subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log, text=True)
                )

    def output(self) -> str:
        """Return what the processes have written so far."""
        return "\n".join(path.read_text() for path in sorted(self._folder.glob("rank-*.log")))

    def close(self) -> None:
        """End both processes."""
        for rank in self._ranks:
            rank.kill()
            rank.wait()
        self._ranks = []


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _serve() -> None:
    from echo_pl.config.compose import compose_config
    from echo_pl.distributed.agree import together
    from echo_pl.runs.run import run

    for line in sys.stdin:
        work = json.loads(line)
        os.environ["MASTER_PORT"] = str(work["port"])
        problem = ""
        try:
            with together():
                run(compose_config(work["overrides"]))
        except BaseException:  # a signal that ends a run is a result too
            problem = traceback.format_exc()
            print(problem, file=sys.stderr, flush=True)
        result = Path(work["result"])
        part = result.with_suffix(".part")
        part.write_text(json.dumps(problem))
        os.replace(part, result)


if __name__ == "__main__":
    _serve()
