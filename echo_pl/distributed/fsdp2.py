"""FSDP2 through Lightning: one data-parallel mesh over all processes, and atomic checkpoints.

The stages shard their models in ``configure_model`` (:mod:`echo_pl.stages.parallel`), by the policy defined here.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.api import CheckpointException

from echo_pl.backbone.sharding import ShardPolicy
from echo_pl.io.atomic import partial_path, replace_path
from echo_pl.io.checkpoints import disk_full_error


class FSDP2Strategy(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy without tensor parallelism; runs on CPUs too (gloo)."""

    def __init__(self, *, policy: ShardPolicy | None = None, sharded_checkpoints: bool = True, **options: Any) -> None:
        """Initialize.

        Args:
            policy: how models are sharded.
            sharded_checkpoints: a folder with a file per rank; False: one file, gathered on rank 0.
            **options: of Lightning's strategy.
        """
        super().__init__(save_distributed_checkpoint=sharded_checkpoints, **options)
        self.policy = policy or ShardPolicy()

    def setup_environment(self) -> None:
        """Create the mesh over all processes of all nodes."""
        # Lightning's defaults are as many data-parallel groups as nodes, and tensor parallelism inside a node.
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write under a temporary name, then rename: a run that dies while it writes keeps the checkpoint before."""
        path = Path(self.broadcast(str(filepath)))
        partial = partial_path(path)
        if self.is_global_zero and partial.is_dir():
            shutil.rmtree(partial)
        self.barrier()
        try:
            super().save_checkpoint(checkpoint, partial, storage_options)
        except (Exception, CheckpointException) as error:  # torch's own is not an Exception
            full = disk_full_error(path, error)
            # Half a checkpoint must not keep a full disk full; the last good one stays.
            shutil.rmtree(partial, ignore_errors=True)
            if full is None:
                raise
            raise full from error
        self.barrier()
        if self.is_global_zero:
            replace_path(partial, path)
        self.barrier()
