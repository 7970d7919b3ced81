"""The readers by name, for whoever chooses one on a command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from echo_pl.data.readers.chexpert_plus import CheXpertPlusReader
from echo_pl.data.readers.echo_json import ECHOJSONReader
from echo_pl.data.readers.iu_kaggle import KaggleIUReader
from echo_pl.data.readers.iu_openi import InstalledOpenIReader, OpenIReader
from echo_pl.data.readers.iu_r2gen import R2GenReader
from echo_pl.data.readers.mimic_cxr import MIMICCXRReader
from echo_pl.data.readers.nih_chestxray14 import NIHChestXray14Reader
from echo_pl.data.readers.padchest_gr import PadChestGRReader
from echo_pl.data.readers.reader import CorpusReader
from echo_pl.data.readers.rexgradient import ReXGradientReader
from echo_pl.data.readers.table_corpus import TableReader

READERS: Final[Mapping[str, Callable[..., CorpusReader]]] = {
    "iu_openi": OpenIReader,
    "iu_installed": InstalledOpenIReader,
    "iu_r2gen": R2GenReader,
    "iu_kaggle": KaggleIUReader,
    "mimic_cxr": MIMICCXRReader,
    "chexpert_plus": CheXpertPlusReader,
    "rexgradient": ReXGradientReader,
    "padchest_gr": PadChestGRReader,
    "nih_chestxray14": NIHChestXray14Reader,
    "echo_json": ECHOJSONReader,
    "table": TableReader,
}
"""Each takes the dataset's place first, but for ``iu_installed``, which finds its own."""
