"""The whole story in one command: a corpus, three stages, and the table that shows why the method exists.

    python -m echo_pl.sweeps.demo                         # synthetic chest X-rays, block size 8
    python -m echo_pl.sweeps.demo block_size=4
    python -m echo_pl.sweeps.demo --data nih --source <folder of nih_64>

corpus -> shards -> vision warm-up -> stage 1 (AR) -> stage 2 (RAD) -> trajectories -> stage 3 (dcd, ce) -> held-out studies.
Each step is a process of its own, as it would be by hand: one that has trained before is larger, and slower for it.
Writes summary.json, report.md and index.html to outputs/demo (outputs/demo-real for real images).
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig

from echo_pl.config.compose import compose_config
from echo_pl.config.errors import reported
from echo_pl.data.pipeline.make_corpus import make_nih, make_synthetic
from echo_pl.distill.collect_trajectories import collect_trajectories
from echo_pl.evaluation.demo import Checkpoints, evaluate_demo
from echo_pl.io.atomic import write_json
from echo_pl.io.memory import peak_memory_gb
from echo_pl.runs.run import run

OBJECTIVES = ("dcd", "ce")
Result = TypeVar("Result")


@dataclass(kw_only=True)
class Demo:
    """One demo: where it writes, what it is told, what it has measured."""

    data: str
    source: Path | None
    folder: Path
    data_root: Path
    studies: int
    trajectories: int
    overrides: list[str]
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_gb: float = 0.0

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Announce a step and note its wall time."""
        print(f"\n== {step} ==", flush=True)
        started = time.monotonic()
        yield
        self.seconds[step] = round(time.monotonic() - started, 1)
        print(f"== {step}: {self.seconds[step]:.0f} s", flush=True)

    def compose(self, *overrides: str) -> DictConfig:
        """The configuration of one step."""
        common = [f"data={self.data}", f"outputs={self.folder}", f"data_root={self.data_root}"]
        return compose_config([*common, *overrides, *self.overrides])

    def make_corpus(self) -> None:
        """Make the corpus, or find it made."""
        out = self.data_root / self.data
        if self.source is not None:
            make_nih(self.source, out)
        else:
            make_synthetic(out)

    def apart(self, work: Callable[..., Result], *args: Any) -> Result:
        """Call a module's function in a process of its own; what it raises is raised here."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__spec__.name])  # imports are shared, memory is not
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            try:
                result, peak = pool.submit(_with_peak, work, *args).result()
            except BrokenProcessPool as error:
                raise OSError(f"the process of this step was ended from outside ({error}): is there enough memory?") from error
        self.peak_memory_gb = max(self.peak_memory_gb, peak)
        return result

    def train(self, step: str, *overrides: str) -> Path:
        """Run one stage and return its checkpoint."""
        with self.timed(step):
            return self.apart(_train, self.compose(*overrides, f"run_name={step}"))

    def everything(self) -> None:
        """All steps in order."""
        shutil.rmtree(self.folder / "runs", ignore_errors=True)
        for name in ("trajectories", "trajectories.part"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        with self.timed("corpus"):
            self.apart(self.make_corpus)
        self.train("warmup", "stage=warmup")
        ar = self.train("stage1", "stage=pretrain")
        base = self.train("stage2", "stage=rad")
        with self.timed("trajectories"):
            config = self.compose("stage=dcd", f"stage.limit_train={self.trajectories}", "stage.batch_size=48")
            store, counts = self.apart(collect_trajectories, config, self.folder / "trajectories")
            print(f"{counts.kept} kept, dropped: {counts.dropped_loops} loops, {counts.dropped_endless} endless")
        distilled = {}
        for name, objective in _stage3().items():
            choice = [] if objective == "dcd" else [f"ablation={objective}"]
            stored = [f"stage.module.trajectories={store}", f"stage.limit_train={self.trajectories}"]
            distilled[objective] = self.train(name, "stage=dcd", *choice, *stored)
        self.finish(Checkpoints(ar=ar, base=base, distilled=distilled))

    def evaluate_again(self) -> None:
        """The last step alone, with the checkpoints of an earlier demo; what its other steps took is kept.

        Raises:
            FileNotFoundError: there is no finished demo in the folder.
        """
        paths = {name: self.folder / "runs" / name / "checkpoints" / "final.ckpt" for name in ("stage1", "stage2", *_stage3())}
        for path in (*paths.values(), self.folder / "summary.json"):
            if not path.is_file():
                raise FileNotFoundError(f"no {path}: --evaluate-only needs a demo that has finished; run make demo first")
        before = json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))
        self.seconds, self.peak_memory_gb = before["seconds"], before["peak_memory_gb"]
        distilled = {objective: paths[name] for name, objective in _stage3().items()}
        self.finish(Checkpoints(ar=paths["stage1"], base=paths["stage2"], distilled=distilled))

    def finish(self, checkpoints: Checkpoints) -> None:
        """Evaluate and write everything that is to be read."""
        with self.timed("evaluation"):
            summary = self.apart(self.evaluate, checkpoints)
        summary |= {"seconds": self.seconds, "peak_memory_gb": round(self.peak_memory_gb, 2)}
        write_json(self.folder / "summary.json", summary)
        print(f"\nread {self.folder / 'report.md'}, look at {self.folder / 'index.html'}")

    def evaluate(self, checkpoints: Checkpoints) -> dict[str, Any]:
        """Decode with every method, write report and page, and return the rows with what belongs to them."""
        started = time.monotonic()
        results = evaluate_demo(self.compose("stage=rad"), checkpoints, self.studies)
        seconds = {**self.seconds, "evaluation": round(time.monotonic() - started, 1)}
        return results.write(self.folder, seconds, self.title, self.command)

    @property
    def title(self) -> str:
        """Heading of the report."""
        corpus = "real chest X-rays (NIH ChestX-ray14, 64 x 64)" if self.data == "nih" else "the synthetic corpus"
        return f"echo_pl demo on {corpus}"

    @property
    def command(self) -> str:
        """How to get these figures again."""
        target = "demo-real" if self.data == "nih" else "demo"
        return f'make {target} ARGS="{" ".join(self.overrides)}"' if self.overrides else f"make {target}"


def _stage3() -> dict[str, str]:
    """Run name -> objective."""
    return {f"stage3-{objective}": objective for objective in OBJECTIVES}


def _with_peak(work: Callable[..., Result], *args: Any) -> tuple[Result, float]:
    """What a call returns, and the most memory its process has had."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return work(*args), peak_memory_gb()


def _train(config: DictConfig) -> Path:
    return run(config).checkpoint


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("synthetic", "nih"), default="synthetic", help="corpus (default synthetic)")
    parser.add_argument("--source", type=Path, help="with --data nih: the folder with images/ and manifest.jsonl")
    parser.add_argument("--out", type=Path, help="where to write (default outputs/demo or outputs/demo-real)")
    parser.add_argument("--data-root", type=Path, default=Path("outputs/data"), help="where corpora are kept")
    parser.add_argument("--studies", type=int, default=304, help="held-out studies to evaluate (default 304)")
    parser.add_argument("--trajectories", type=int, default=2400, help="training studies the teacher decodes")
    parser.add_argument("--evaluate-only", action="store_true", help="decode and report again, with the checkpoints that are there")
    parser.add_argument("overrides", nargs="*", help="configuration for every stage, as for echo-pl: block_size=4 ...")
    args = parser.parse_args()
    if args.data == "nih" and (args.source is None or not (args.source / "manifest.jsonl").is_file()):
        print(
            f"demo-real is skipped: there is no manifest.jsonl in {args.source}. It needs real images: a folder with "
            "images/ and manifest.jsonl (docs/explain/data.md), given as --source <folder> or make demo-real REAL_DATA=<folder>."
        )
        return
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder = args.out or Path("outputs/demo-real" if args.data == "nih" else "outputs/demo")
    with reported():
        demo = Demo(
            data=args.data,
            source=args.source,
            folder=folder,
            data_root=args.data_root,
            studies=args.studies,
            trajectories=args.trajectories,
            overrides=args.overrides,
        )
        if args.evaluate_only:
            demo.evaluate_again()
        else:
            demo.everything()


if __name__ == "__main__":
    main()
