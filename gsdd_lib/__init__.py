"""Dataset distillation with sparse 2D Gaussians (GSDD, arXiv 2509.26219).

Importing this package compiles nothing, seeds nothing and does not even import torch: the public
names below are looked up when first used; everything else is in the modules.
"""

import importlib

__version__ = "0.1.0"

_HOME = {
    "distill_images": "gsdd_lib.api",
    "splat": "gsdd_lib.splatting.splat",
    "GaussianImages": "gsdd_lib.parameterizations.gaussian",
    "load_data": "gsdd_lib.data",
    "plan_budget": "gsdd_lib.parameterizations.budget",
    "initial_gaussians": "gsdd_lib.parameterizations.fit",
    "load": "gsdd_lib.storage",
    "DistilledSet": "gsdd_lib.storage",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'gsdd_lib' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)
