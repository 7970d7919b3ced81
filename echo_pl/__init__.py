"""One-step block-diffusion vision-language models for chest X-ray reports: training, distillation, decoding, evaluation."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

__version__ = "0.2.0"


def _name_observers() -> None:
    """Import ``callbacks/`` of a checkout, which is beside the package, as ``echo_pl.callbacks``; a wheel has it inside."""
    package = Path(__file__).resolve().parent
    name, folder = f"{__name__}.callbacks", package.parent / "callbacks"
    if name in sys.modules or (package / "callbacks").is_dir() or not folder.is_dir():
        return
    spec = spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


_name_observers()
