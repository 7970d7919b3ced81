"""How long a corpus's contexts and responses are, in tokens, as training would see them. Used by :mod:`echo_pl.bench.plan`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hydra.utils import instantiate
from tqdm.auto import tqdm

from echo_pl.config.compose import compose_config
from echo_pl.data.loading.datamodule import ReportDataModule

_AT_ONCE = 32


@dataclass(frozen=True, kw_only=True)
class TokenStatistics:
    """Of the training studies of a corpus."""

    studies: int
    context_mean: float
    """Image tokens and instruction."""
    context_longest: int
    response_mean: float
    """Report and its end."""
    response_longest: int

    @property
    def sentence(self) -> str:
        """For people."""
        return (
            f"{self.studies} studies: contexts of {self.context_mean:.1f} tokens, at most {self.context_longest}; "
            f"responses of {self.response_mean:.1f}, at most {self.response_longest}"
        )


def token_statistics(overrides: Sequence[str]) -> TokenStatistics:
    """Read every training study that a configuration visits, images too: their sizes decide how many tokens they are.

    Args:
        overrides: configuration, as for ``echo-pl``.

    Raises:
        FileNotFoundError: there is no such corpus.
        ValueError: an unknown key, or damaged data.
    """
    data: ReportDataModule = instantiate(compose_config(["stage=rad", *overrides]).data, _convert_="all")
    data.setup()
    batches = data.train_batches_once(_AT_ONCE)
    read = [(b.context_lengths_B, b.response_lengths_B) for b in tqdm(batches, total=len(batches), desc="lengths", unit="batch")]
    contexts, responses = (torch.cat(lengths).double() for lengths in zip(*read, strict=True))
    return TokenStatistics(
        studies=len(contexts),
        context_mean=float(contexts.mean()),
        context_longest=int(contexts.max()),
        response_mean=float(responses.mean()),
        response_longest=int(responses.max()),
    )
