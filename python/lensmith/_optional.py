"""Libraries that some functions need and the package does not."""

from __future__ import annotations

import importlib
from typing import Any

#: What to install for a module, where its name is another one.
_PACKAGES = {"sklearn": "scikit-learn"}


def require(module: str, what: str) -> Any:
    """The module of that name, for `what`.

    Raises ImportError that says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or module.split(".")[0] != error.name.split(".")[0]:
            raise
        package = _PACKAGES.get(module, module.split(".")[0])
        raise ImportError(f"{what} needs {package}: pip install {package}") from error
