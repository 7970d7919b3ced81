"""The one part of webdataset that is used, imported in its secure mode: no pickles, no commands, no URLs.

Nothing else in the project imports webdataset. Its own opening and decoding of files is not used at all.
"""

from __future__ import annotations

import os

os.environ["WDS_SECURE"] = "1"  # read by webdataset when it is imported

from webdataset import TarWriter, utils

utils.enforce_security = True  # for the case that another library has imported it before

__all__ = ["TarWriter"]
