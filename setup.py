"""Packages of the distribution; everything else is in pyproject.toml.

The observers and the configuration are folders of their own in the repository and travel inside the package, so that a wheel works
from any folder and installs no top-level name besides ``echo_pl`` and Hydra's own ``hydra_plugins``.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["echo_pl", "echo_pl.*"]), "hydra_plugins", "echo_pl.callbacks", "echo_pl.experiments"],
    package_dir={"echo_pl.callbacks": "callbacks", "echo_pl.experiments": "experiments"},
)
