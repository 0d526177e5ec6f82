"""Importing the room needs none of the libraries that take seconds to import."""

import subprocess
import sys

IMPORT_ALL = """
import importlib, pkgutil, sys
for name in ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "matplotlib"):
    sys.modules[name] = None  # an import of it fails
import fmstune.data
names = [module.name for module in pkgutil.iter_modules(fmstune.data.__path__)]
for name in names:
    importlib.import_module(f"fmstune.data.{name}")
print(len(names))
"""


def test_every_module_of_data_is_imported_without_torch_transformers_and_datasets() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 15
