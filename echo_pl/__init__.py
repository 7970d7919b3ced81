"""One-step block-diffusion vision-language models for chest X-ray reports: training, distillation, decoding, evaluation."""

from pathlib import Path

__version__ = "0.2.0"

_PACKAGE = Path(__file__).resolve().parent
if not (_PACKAGE / "callbacks").is_dir():
    # A checkout has callbacks/ beside the package, a wheel has it inside: `echo_pl.callbacks` names it in both.
    __path__.append(str(_PACKAGE.parent))
