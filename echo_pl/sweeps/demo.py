"""The demo: a corpus, three stages, and the table that shows why the method exists.

corpus -> shards -> vision warm-up -> stage 1 (AR) -> stage 2 (RAD) -> trajectories -> stage 3 (dcd, ce) -> held-out studies.
Each step is a process of its own, as it would be by hand: a process that has trained before is larger, and slower for it. Sizes and
settings of the steps are data, in ``experiments/demo/``.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from echo_pl.config.compose import EXPERIMENTS, compose_config
from echo_pl.data.pipeline.make_corpus import make_nih, make_synthetic
from echo_pl.distill.collect_trajectories import collect_trajectories
from echo_pl.distributed.agree import together
from echo_pl.distributed.launch import detect
from echo_pl.evaluation.demo import Checkpoints, evaluate_demo
from echo_pl.io.atomic import write_json
from echo_pl.io.memory import peak_memory_gb
from echo_pl.runs.run import run, silence_noisy_loggers
from echo_pl.runs.stored_features import store_features

OBJECTIVES = ("dcd", "ce")
STEPS = {
    "corpus": "make the corpus: images, reports, shards",
    "warmup": "warm up the vision tower on finding labels",
    "stage1": "stage 1, NormalizedPretrain: an autoregressive model",
    "features": "store the output of the vision tower, which does not change from here on",
    "stage2": "stage 2, RADModule: block diffusion",
    "trajectories": "decode training studies with the teacher and store its trajectories",
    "stage3": "stage 3, DCDModule: students that write a block in one step",
    "evaluation": "decode held-out studies by every method",
}
Result = TypeVar("Result")


@dataclass
class DemoSettings:
    """Sizes and settings of a demo, as in ``experiments/demo/*.yaml``."""

    corpus: dict[str, int] = MISSING
    """Studies of each split."""
    studies: int = MISSING
    """Held-out studies to evaluate."""
    single_studies: int | None = MISSING
    """The first so many of them are also decoded one at a time, which measures speed; None: all."""
    trajectories: int = MISSING
    """Training studies that the teacher decodes."""
    trajectory_batch_size: int = MISSING
    stored_features: bool = MISSING
    """True: the vision tower runs once, before stage 2."""
    parallel_students: bool = MISSING
    """True: both students train at the same time, on half of the threads each."""
    processes: int = MISSING
    """Processes that share a stage's batches and the collection of trajectories, with one thread each; 1: one, with all threads."""
    stages: dict[str, list[str]] = MISSING
    """Overrides of each run."""
    seconds: dict[str, int] = field(default_factory=dict)
    """Expected duration of each step on two cores, for the messages."""

    @classmethod
    def load(cls, name: str, **changes: int | None) -> DemoSettings:
        """Load ``experiments/demo/<name>.yaml``, with the changes that are not None.

        Raises:
            ValueError: an unknown key or a value of the wrong type.
        """
        path = EXPERIMENTS / "demo" / f"{name}.yaml"
        given = {key: value for key, value in changes.items() if value is not None}
        try:
            settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), OmegaConf.load(path), given))
        except OmegaConfBaseException as error:
            raise ValueError(f"{path}: {str(error).splitlines()[0]}") from error
        assert isinstance(settings, cls)
        return settings


@dataclass(kw_only=True)
class Demo:
    """One demo: its folders, settings and measurements."""

    data: str
    source: Path | None
    folder: Path
    data_root: Path
    settings: DemoSettings
    overrides: list[str]
    full: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_gb: float = 0.0

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Announce a step with its expected duration, and record its wall time."""
        expected = self.settings.seconds.get(step)
        duration = "" if expected is None else f" (about {expected} s on two cores)"
        print(f"\n== {step}: {STEPS[step]}{duration}", flush=True)
        started = time.monotonic()
        yield
        self.seconds[step] = round(time.monotonic() - started, 1)
        print(f"== {step}: done in {self.seconds[step]:.0f} s", flush=True)

    def compose(self, *overrides: str) -> DictConfig:
        """The configuration of one step."""
        common = [f"data={self.data}", f"outputs={self.folder}", f"data_root={self.data_root}"]
        if not sys.stderr.isatty():
            common.append("trainer.enable_progress_bar=false")  # a bar in a file is a line for each update
        return compose_config([*common, *overrides, *self.overrides])

    def make_corpus(self) -> None:
        """Make the corpus, or find it made."""
        out = self.data_root / self.data
        if self.source is not None:
            make_nih(self.source, out)
        else:
            counts = self.settings.corpus
            make_synthetic(out, train=counts["train"], val=counts["val"], test=counts["test"])

    def apart(self, work: Callable[..., Result], *args: Any, processes: int = 1) -> Result:
        """Call a module's function in a process of its own; what it raises is raised here.

        Args:
            work: the function.
            args: its arguments.
            processes: ranks that call it together, as ``torchrun`` would start them; the result is that of rank 0.
        """
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])  # imports are shared, memory is not
        others = set(multiprocessing.active_children())
        with ExitStack() as pools:
            ranks = []
            for environment in _rank_environments(processes):
                pool = pools.enter_context(ProcessPoolExecutor(1, mp_context=context))
                ranks.append(pool.submit(_with_peak, environment, work, *args))
            try:
                results = {rank: rank.result() for rank in as_completed(ranks)}
            except BaseException as error:
                if processes > 1:  # the other ranks would wait for the one that failed
                    for child in set(multiprocessing.active_children()) - others:
                        child.terminate()
                if isinstance(error, BrokenProcessPool):
                    message = f"the process of this step was ended from outside ({error}): is there enough memory?"
                    raise OSError(message) from error
                raise
        self.peak_memory_gb = max(self.peak_memory_gb, sum(peak for _, peak in results.values()))
        return results[ranks[0]][0]

    def train(self, name: str, *overrides: str, processes: int | None = None) -> Path:
        """Run one stage and return its checkpoint."""
        processes = processes or self.settings.processes
        own = self.settings.stages.get(name.partition("-")[0], [])
        config = self.compose(*_together(processes), *overrides, *own, f"run_name={name}")
        return self.apart(_train, config, processes=processes)

    def everything(self) -> None:
        """All steps in order."""
        shutil.rmtree(self.folder / "runs", ignore_errors=True)
        for name in ("trajectories", "trajectories.part", "features"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        with self.timed("corpus"):
            self.apart(self.make_corpus)
        with self.timed("warmup"):
            self.train("warmup", "stage=warmup")
        with self.timed("stage1"):
            ar = self.train("stage1", "stage=pretrain")
        stored = []
        if self.settings.stored_features:
            with self.timed("features"):
                self.apart(store_features, self.compose("stage=rad"), self.folder / "features", "bfloat16", 64)
            stored = [f"data.stored_features={self.folder / 'features'}"]
        with self.timed("stage2"):
            base = self.train("stage2", "stage=rad", *stored)
        limit = f"stage.limit_train={self.settings.trajectories}"
        with self.timed("trajectories"):
            processes = self.settings.processes
            size = f"stage.batch_size={self.settings.trajectory_batch_size}"
            config = self.compose(*_together(processes), "stage=dcd", limit, size, *stored)
            store, counts = self.apart(collect_trajectories, config, self.folder / "trajectories", processes=processes)
            print(f"{counts.kept} kept, dropped: {counts.dropped_loops} loops, {counts.dropped_endless} endless")
        with self.timed("stage3"):
            distilled = self.train_students(limit, f"stage.module.trajectories={store}", *stored)
        self.finish(Checkpoints(ar=ar, base=base, distilled=distilled))

    def train_students(self, *overrides: str) -> dict[str, Path]:
        """Train a student with each objective, at the same time if the settings ask for it."""
        parallel = ["threads=1", "trainer.enable_progress_bar=false"] if self.settings.parallel_students else []

        def student(name: str, objective: str) -> Path:
            choice = [] if objective == "dcd" else [f"ablation={objective}"]
            return self.train(name, "stage=dcd", *choice, *overrides, *parallel, processes=1 if parallel else None)

        with ThreadPoolExecutor(len(OBJECTIVES) if parallel else 1) as pool:
            names = _stage3()
            return dict(zip(names.values(), pool.map(student, names, names.values()), strict=True))

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
        settings = self.settings
        results = evaluate_demo(self.compose("stage=rad"), checkpoints, settings.studies, settings.single_studies)
        seconds = {**self.seconds, "evaluation": round(time.monotonic() - started, 1)}
        return results.write(self.folder, seconds, self.title, self.command)

    @property
    def title(self) -> str:
        """Heading of the report."""
        corpus = "real chest X-rays (NIH ChestX-ray14, 64 x 64)" if self.data == "nih" else "the synthetic corpus"
        return f"echo_pl demo on {corpus}"

    @property
    def command(self) -> str:
        """Command that reproduces the results."""
        target = "demo-real" if self.data == "nih" else "demo-full" if self.full else "demo"
        return f'make {target} ARGS="{" ".join(self.overrides)}"' if self.overrides else f"make {target}"


def _stage3() -> dict[str, str]:
    """Run name -> objective."""
    return {f"stage3-{objective}": objective for objective in OBJECTIVES}


def _together(processes: int) -> list[str]:
    """Overrides of a run of several processes."""
    return [] if processes == 1 else ["trainer=ddp", f"trainer.devices={processes}", "threads=1"]


def _rank_environments(processes: int) -> list[dict[str, str]]:
    """Variables of each rank, as ``torchrun`` sets them; none for a process alone."""
    if processes == 1:
        return [{}]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"TORCHELASTIC_RUN_ID": "demo", "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    shared |= {"GROUP_WORLD_SIZE": "1", "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def _with_peak(environment: Mapping[str, str], work: Callable[..., Result], *args: Any) -> tuple[Result, float]:
    """Result of a call, and the peak memory of its process."""
    os.environ.update(environment)
    logging.basicConfig(level=logging.INFO if detect().rank == 0 else logging.WARNING, format="%(message)s")
    if environment:  # Lightning announces every process group, and asks to sum metrics that are summed already
        logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
        silence_noisy_loggers()
        warnings.filterwarnings("ignore", message=".*sync_dist=True.*")
    with together():
        return work(*args), peak_memory_gb()


def _train(config: DictConfig) -> Path:
    return run(config).checkpoint
