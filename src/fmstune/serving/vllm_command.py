"""`fmstune serve --engine vllm`: the commands that serve the model with vLLM, which run where it is installed."""

import importlib.util
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

from transformers.utils import GENERATION_CONFIG_NAME

from fmstune.config.after_training.serving import API_KEY, Serving
from fmstune.config.requests import Export, Merge
from fmstune.errors import naming_flag, raise_if_any
from fmstune.models import merge, tuned, vllm
from fmstune.models.tuned import Place
from fmstune.serving.served_models import BASE, TUNED

VLLM_KEY = "VLLM_API_KEY"
"""Environment variable: the key that vLLM asks its clients for."""


class Commands(NamedTuple):
    """What is to be run, in this order."""

    export: Merge | None
    """How the adapter is written in vLLM's form; None for a whole model, and where that is done."""
    serve: list[str]


def serve_by_vllm(request: Serving) -> int:
    """Print the commands, and run them where vLLM is installed; raises UserError for what vLLM cannot serve."""
    with naming_flag("serve", ["--model"]):
        place = tuned.locate(request.model, request.base_model_name_or_path, force=request.force)
    commands = vllm_commands(request, place)
    if commands.export is not None:
        made = commands.export
        flags = [f"--base_model_name_or_path={made.base_model_name_or_path}"] if made.base_model_name_or_path else []
        flags += ["--force"] if made.force else []
        print(
            shlex.join(["fmstune", "merge", "--model", *made.model, "--export", "vllm_lora", "--out", made.out, *flags])
        )
    key = f'{VLLM_KEY}="${API_KEY}" ' if API_KEY in os.environ else ""
    print(key + shlex.join(commands.serve), flush=True)
    if importlib.util.find_spec("vllm") is not None and shutil.which("vllm") is not None:
        if commands.export is not None:
            merge.run_merge(commands.export)
        env = {**os.environ, **({VLLM_KEY: os.environ[API_KEY]} if API_KEY in os.environ else {})}
        sys.stdout.flush()
        # it takes the place of this process, and so the signals that the parent hands on
        os.execvpe(commands.serve[0], commands.serve, env)
    print("fmstune: note: vLLM is not installed here; run these commands where it is", file=sys.stderr)
    return 0


def vllm_commands(request: Serving, place: Place) -> Commands:
    """The commands for a model or an adapter; raises UserError for an adapter that vLLM cannot take."""
    listens = ["--host", request.host, "--port", str(request.port), "--dtype", request.dtype.value]
    if place.base is None:
        return Commands(None, ["vllm", "serve", place.model, "--served-model-name", TUNED, *listens])
    config = tuned.adapter_config(place.model)
    with naming_flag("--engine", ["--export"]):
        raise_if_any(vllm.config_problems(place.model, config))
    folder = Path(place.model)
    out = str((folder.parent if folder.name == "model" else Path()) / "vllm_lora")
    export = Merge(
        model=(place.model,),
        out=out,
        export=Export.vllm_lora,
        base_model_name_or_path=request.base_model_name_or_path,
        force=request.force,
    )
    revision = ["--revision", place.revision] if place.revision else []
    # the export writes the file again
    ends = (folder / GENERATION_CONFIG_NAME).is_file()
    words = [*vllm.serving_words(place, config, out, ends=ends), "--served-model-name", BASE, *revision, *listens]
    return Commands(None if Path(out).is_dir() else export, ["vllm", "serve", *words])
