"""A command of the early tool's `tuning/sft_trainer.py` → words of `fmstune train` that mean the same."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib import resources

import yaml

from fmstune.config import groups
from fmstune.errors import Problem, UserError
from fmstune.migrate import launcher
from fmstune.migrate.flags import OF_METHOD, TUNING, Flag, Kind
from fmstune.migrate.launcher import Given, Read
from fmstune.migrate.words import (
    Became,
    Note,
    Translated,
    by_word,
    moved,
    moves,
    shown,
    single,
    switch,
    typed,
    typed_list,
)

_SPECIAL = (
    "model_name_or_path",
    "tokenizer_name_or_path",
    "peft_method",
    "packing",
    "use_flash_attn",
    "tracker",
    "trackers",
    "report_to",
    "aim_repo",
    "aim_remote_server_ip",
    "aim_remote_server_port",
    "experiment",
    "fsdp",
    "fsdp_config",
    "fsdp_transformer_layer_cls_to_wrap",
)
"""Flags that say more together than one by one."""


def translate(given: Given, launch: Given | None, environment: Mapping[str, str], read: Read) -> Translated:
    """The job that a tuning command was; `launch` has flags of `accelerate launch`, None where there was none.

    Raises UserError with all that is unknown, refused or missing.
    """
    out = Translated()
    method = _method(given, out)
    _model(given, out)
    out.fields |= {"peft": TUNING["peft_method"].values[method], "data": "text"}
    _missing(given, out)
    _plain_flags(given, method, out)
    _early_defaults(given, method, out)
    for step in (
        partial(_packing, given, out),
        partial(_attention, given, out),
        partial(_tracking, given, environment, out),
        partial(_launcher, given, launch, read, out),
    ):
        _guarded(out, step)
    if "validation_data_path" not in given:
        out.fields["evaluation"] = "none"
    out.notes.append(
        Note(
            Became.changed,
            "checkpoints in output_dir",
            "checkpoints and `model` in output_dir",
            "a pad token is taken from the vocabulary where it has one; the same command goes on after a kill",
        )
    )
    return out


def _guarded(out: Translated, step: Callable[[], None]) -> None:
    """Keep what is wrong in one part for the list of all problems."""
    try:
        step()
    except UserError as err:
        out.problems += err.problems


def _method(given: Given, out: Translated) -> str:
    values = given.get("peft_method", ["none"])
    method = values[0].lower() if values else "none"
    if method not in OF_METHOD:
        out.problems.append(
            Problem("--peft_method", f"must be one of {', '.join(OF_METHOD)}; got {' '.join(values)!r}")
        )
        return "none"
    if "peft_method" in given:
        group = TUNING["peft_method"].values[method]
        out.notes.append(Note(Became.renamed, shown("peft_method", values), f"peft={group}"))
    return method


def _model(given: Given, out: Translated) -> None:
    """The model's group: a shipped one where it has this path, which brings its architecture along."""
    values = given.get("model_name_or_path", [str(TUNING["model_name_or_path"].early)])
    path = values[0] if values else ""
    choice = shipped_model(path)
    out.fields["model"] = choice or "causal_lm"
    if choice is None:
        out.fields["model.path"] = typed(path)
    new = f"model={choice}" if choice else f"model=causal_lm model.path={typed(path)}"
    if "model_name_or_path" in given:
        out.notes.append(Note(Became.renamed, shown("model_name_or_path", values), new))
    else:
        out.notes.append(Note(Became.set, "--model_name_or_path was left out", new))
    tokenizer = given.get("tokenizer_name_or_path")
    if tokenizer and tokenizer[0] == path:
        why = "the model's own is taken when model.tokenizer is left out"
        out.notes.append(Note(Became.dropped, shown("tokenizer_name_or_path", tokenizer), why=why))
    elif tokenizer:
        out.fields["model.tokenizer"] = typed(tokenizer[0])
        why = TUNING["tokenizer_name_or_path"].why
        new = f"model.tokenizer={typed(tokenizer[0])}"
        out.notes.append(Note(Became.renamed, shown("tokenizer_name_or_path", tokenizer), new, why))


def shipped_model(path: str) -> str | None:
    """The choice of the model group whose file names this path."""
    for name in groups.choices("model"):
        text = resources.files("fmstune.conf").joinpath("model", f"{name}.yaml").read_text(encoding="utf-8")
        if yaml.safe_load(text).get("path") == path:
            return name
    return None


def _missing(given: Given, out: Translated) -> None:
    """What the early tool would not start without."""
    packs = "packing" in given and given["packing"] and given["packing"][0].lower() == "true"
    needed = {"dataset_text_field": "the column that holds the text"}
    if not packs:
        needed["response_template"] = "the text before the answer"
    if "data_path" not in given:
        needed["training_data_path"] = "the file with the training rows"
    for name, what in needed.items():
        if name not in given:
            out.problems.append(Problem(f"--{name}", f"is missing, without which the early tool did not start: {what}"))


def _plain_flags(given: Given, method: str, out: Translated) -> None:
    """Each flag that stands for itself."""
    of_other_methods = {name for other in OF_METHOD for name in OF_METHOD[other]} - set(OF_METHOD[method])
    for name, values in given.items():
        flag = moves(name, values, TUNING, out)
        if flag is None:
            continue
        if name in of_other_methods:
            why = f"peft={TUNING['peft_method'].values[method]} has no such field, and the early tool passed over it"
            out.notes.append(Note(Became.dropped, shown(name, values), why=why))
        elif name not in _SPECIAL:
            _guarded(out, partial(_one, name, flag, values, out))


def _one(name: str, flag: Flag, values: list[str], out: Translated) -> None:
    value = _typed(name, flag, values)
    if value == "":
        out.notes.append(Note(Became.dropped, shown(name, values), why=flag.why or "it is the default"))
        return
    out.fields[flag.field] = value
    out.notes.append(Note(moved(name, flag.field), shown(name, values), f"{flag.field}={value}", flag.why))


def _typed(name: str, flag: Flag, values: list[str]) -> str:
    """The value as it is typed today; "" where nothing needs to be set."""
    if flag.kind is Kind.words:
        names = [word for value in values for word in value.split()]
        if not names:
            raise UserError(f"--{name}", "takes one value or more, got none")
        return names[0] if names == ["all-linear"] else typed_list(names)
    if flag.kind is Kind.switch:
        word = "true" if switch(name, values) else "false"
        return flag.values[word] if flag.values else word
    value = single(name, values)
    if flag.values and value.lower() in flag.values:
        return flag.values[value.lower()]
    return typed(value, flag.kind)


def _early_defaults(given: Given, method: str, out: Translated) -> None:
    """Defaults that were others then, so that what is left out means the same."""
    of_methods = {name for names in OF_METHOD.values() for name in names}
    for name, flag in TUNING.items():
        if flag.early is None or name in _SPECIAL or flag.field in out.fields or name in given:
            continue
        if name in of_methods and name not in OF_METHOD[method]:
            continue
        if name == "target_modules" and out.fields["model"] != "causal_lm":
            # the model's own file has the modules of its architecture
            continue
        if name == "prompt_tuning_init_text" and out.fields["peft.prompt_tuning_init"] != "TEXT":
            continue
        value = typed_list(flag.early) if isinstance(flag.early, tuple) else typed(flag.early, flag.kind)
        out.fields[flag.field] = value
        why = "leave it out for PEFT's own list for the architecture" if name == "target_modules" else ""
        out.notes.append(Note(Became.set, f"--{name} was left out", f"{flag.field}={value}", why))


def _packing(given: Given, out: Translated) -> None:
    values = given.get("packing")
    if values is None:
        return
    packs = switch("packing", values)
    out.fields["training.packing"] = str(packs).lower()
    out.notes.append(Note(Became.kept, shown("packing", values), f"training.packing={str(packs).lower()}"))
    if packs:
        out.fields["data.response_template"] = "null"
        out.notes.append(
            Note(
                Became.changed,
                "--packing True trained whole texts",
                "data.response_template=null",
                "leave it out to train the answers only; packed rows no longer see each other, and none is cut",
            )
        )


def _attention(given: Given, out: Translated) -> None:
    flag = TUNING["use_flash_attn"]
    values = given.get("use_flash_attn")
    if values is None:
        out.notes.append(Note(Became.changed, "--use_flash_attn was left out", "model.attention=auto", flag.why))
        return
    value = _typed("use_flash_attn", flag, values)
    out.fields["model.attention"] = value
    out.notes.append(Note(Became.renamed, shown("use_flash_attn", values), f"model.attention={value}"))


def _tracking(given: Given, environment: Mapping[str, str], out: Translated) -> None:
    """Trackers, from flags and from the variables that the first version read."""
    chosen: list[str] = []
    for name in ("report_to", "tracker", "trackers"):
        words = [word for value in given.get(name, []) for word in value.lower().replace(",", " ").split()]
        if words == ["all"]:
            out.notes.append(Note(Became.dropped, shown(name, words), why="choose some, as tracking=tensorboard"))
            continue
        chosen += [by_word(name, TUNING[name], word) for word in words]
        if words:
            out.notes.append(
                Note(Became.renamed, shown(name, words), f"tracking={','.join(filter(None, chosen)) or 'file'}")
            )
    aim = {"repo": _aim_place(given, environment), "experiment": _aim_experiment(given, environment)}
    if any(value for value, _ in aim.values()):
        chosen.append("aim")
    names = list(dict.fromkeys(name for name in chosen if name))
    if names:
        out.fields["tracking"] = names[0] if len(names) == 1 else typed_list(names)
    elif not given.keys() & {"report_to", "tracker", "trackers"}:
        why = "then all trackers that were installed; tracking=aim or another chooses one"
        out.notes.append(Note(Became.changed, "--report_to was left out", "metrics.jsonl alone", why))
    for field, (value, old) in aim.items():
        if value:
            out.fields[f"tracking.aim.{field}"] = typed(value)
            out.notes.append(Note(Became.renamed, old, f"tracking.aim.{field}={typed(value)}"))


def _aim_place(given: Given, environment: Mapping[str, str]) -> tuple[str, str]:
    """Aim's repository or server, and where that was said."""
    host = (given.get("aim_remote_server_ip") or [""])[0]
    if host:
        port = (given.get("aim_remote_server_port") or ["53800"])[0]
        return f"aim://{host}:{port}", shown("aim_remote_server_ip", [host])
    server = environment.get("AIMSTACK_SERVER", "")
    if server:
        return server if "://" in server else f"aim://{server}", f"AIMSTACK_SERVER={server}"
    if repo := given.get("aim_repo"):
        return repo[0], shown("aim_repo", repo)
    repo_variable = environment.get("AIMSTACK_DB", "")
    return repo_variable, f"AIMSTACK_DB={repo_variable}"


def _aim_experiment(given: Given, environment: Mapping[str, str]) -> tuple[str, str]:
    if name := given.get("experiment"):
        return name[0], shown("experiment", name)
    variable = environment.get("AIMSTACK_EXPERIMENT", "")
    return variable, f"AIMSTACK_EXPERIMENT={variable}"


def _launcher(given: Given, launch: Given | None, read: Read, out: Translated) -> None:
    flags = dict(launch or {})
    if "fsdp" in given:
        config = given.get("fsdp_config")
        flags |= launcher.of_training(given["fsdp"], config[0] if config else None, read)
        flags.pop("multi_gpu", None)
    if "fsdp_transformer_layer_cls_to_wrap" in given:
        flags["fsdp_transformer_layer_cls_to_wrap"] = given["fsdp_transformer_layer_cls_to_wrap"]
    if launch is not None or flags:
        names = shown("fsdp", given["fsdp"]) if "fsdp" in given else "the launcher's flags"
        launcher.translate(flags, names, read, out)
        if "fsdp" in given:
            # what its words came to has no flag of its own
            typed_words = ("--fsdp_sharding_strategy", "--fsdp_offload_params") if "fsdp_config" not in given else ()
            out.notes = [replace(note, old=names) if note.old.startswith(typed_words) else note for note in out.notes]
