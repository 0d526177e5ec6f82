"""A command of the early tool's `tuning/sft_trainer.py` → words of `fmstune train` that mean the same."""

from collections.abc import Mapping
from dataclasses import replace

from fmstune.config import groups
from fmstune.migrate import launcher
from fmstune.migrate.flags import OF_METHOD, TUNING, Flag
from fmstune.migrate.launcher import Read
from fmstune.migrate.words import (
    Became,
    Given,
    Translation,
    hydra_list,
    hydra_word,
    moved_flag,
    old_flag,
    switch_value,
    todays_value,
    todays_word,
)

_TRACKERS = ("report_to", "tracker", "trackers")
_SPECIAL = (
    *("model_name_or_path", "tokenizer_name_or_path", "peft_method", "use_flash_attn"),
    *(*_TRACKERS, "aim_repo", "aim_remote_server_ip", "aim_remote_server_port", "experiment"),
    *("fsdp", "fsdp_config", "fsdp_transformer_layer_cls_to_wrap"),
)
"""Flags that are not translated one by one."""


def translate_tuning(
    given: Given, launch: Given | None, environment: Mapping[str, str], read: Read, out: Translation
) -> None:
    """Translate a tuning command; `launch` has its flags of `accelerate launch`, None without a launcher."""
    method = _method(given, out)
    _model(given, out)
    out.fields |= {"peft": TUNING["peft_method"].values[method], "data": "text"}
    _missing(given, out)
    _plain_flags(given, method, out)
    _early_defaults(given, method, out)
    out.attempt(_packing, given, out)
    out.attempt(_attention, given, out)
    out.attempt(_tracking, given, environment, out)
    out.attempt(_launcher, given, launch, read, out)
    if "validation_data_path" not in given:
        out.fields["evaluation"] = "none"
    why = "the pad token is one of the vocabulary if possible; the same command resumes an interrupted run"
    out.note(Became.changed, "checkpoints in output_dir", "checkpoints and `model` in output_dir", why)


def _method(given: Given, out: Translation) -> str:
    values = given.get("peft_method", ["none"])
    method = values[0].lower() if values else "none"
    if method not in OF_METHOD:
        out.problem("--peft_method", f"must be one of {', '.join(OF_METHOD)}; got {' '.join(values)!r}")
        return "none"
    if "peft_method" in given:
        out.note(Became.renamed, old_flag("peft_method", values), f"peft={TUNING['peft_method'].values[method]}")
    return method


def _model(given: Given, out: Translation) -> None:
    """Add the model: the shipped group that has this path, which sets its architecture too, or causal_lm."""
    values = given.get("model_name_or_path", [str(TUNING["model_name_or_path"].early)])
    path = values[0] if values else ""
    shipped = groups.shipped_choices("model").items()
    choice = next((name for name, group in shipped if group.get("model", group).get("path") == path), None)
    fields = {"model": choice} if choice else {"model": "causal_lm", "model.path": hydra_word(path)}
    out.fields |= fields
    new = " ".join(f"{name}={word}" for name, word in fields.items())
    if "model_name_or_path" in given:
        out.note(Became.renamed, old_flag("model_name_or_path", values), new)
    else:
        out.note(Became.set, "--model_name_or_path was left out", new)
    if tokenizer := given.get("tokenizer_name_or_path"):
        old = old_flag("tokenizer_name_or_path", tokenizer)
        if tokenizer[0] == path:
            out.drop(old, "the default of model.tokenizer is the model's own")
        else:
            out.set(old, "model.tokenizer", hydra_word(tokenizer[0]), TUNING["tokenizer_name_or_path"].why)


def _missing(given: Given, out: Translation) -> None:
    needed = {"dataset_text_field": "the column that holds the text"}
    if [word.lower() for word in given.get("packing", [])[:1]] != ["true"]:
        needed["response_template"] = "the text before the answer"
    if "data_path" not in given:
        needed["training_data_path"] = "the file with the training rows"
    for name, meaning in needed.items():
        if name not in given:
            out.problem(f"--{name}", f"is missing, and the early tool required it: {meaning}")


def _plain_flags(given: Given, method: str, out: Translation) -> None:
    of_other_methods = {name for other in OF_METHOD for name in OF_METHOD[other]} - set(OF_METHOD[method])
    for name, values in given.items():
        flag, old = moved_flag(name, values, TUNING, out), old_flag(name, values)
        if flag is not None and name in of_other_methods:
            out.drop(old, f"peft={TUNING['peft_method'].values[method]} has no such field; the early tool ignored it")
        elif flag is not None and name not in _SPECIAL:
            out.attempt(_plain_flag, name, flag, values, out)


def _plain_flag(name: str, flag: Flag, values: list[str], out: Translation) -> None:
    if value := todays_value(name, flag, values):
        out.set(old_flag(name, values), flag.field, value, flag.why)
    else:
        out.drop(old_flag(name, values), flag.why or "it is the default")


def _early_defaults(given: Given, method: str, out: Translation) -> None:
    """Set each early default that differs from today's, so that a flag that was left out means the same."""
    others = {name for names in OF_METHOD.values() for name in names} - {*OF_METHOD[method]}
    for name, flag in TUNING.items():
        if flag.early is None or name in (*_SPECIAL, *others, *given) or flag.field in out.fields:
            continue
        if name == "target_modules" and out.fields["model"] != "causal_lm":
            # the model's YAML names the modules of its architecture
            continue
        if name == "prompt_tuning_init_text" and out.fields["peft.prompt_tuning_init"] != "TEXT":
            continue
        value = hydra_list(flag.early) if isinstance(flag.early, tuple) else hydra_word(flag.early, flag.kind)
        why = "without this field, PEFT chooses the modules for the architecture" if name == "target_modules" else ""
        out.set(f"--{name} was left out", flag.field, value, why, Became.set)


def _packing(given: Given, out: Translation) -> None:
    if switch_value("packing", given.get("packing", ["false"])):
        why = "remove it to train the answers only; packed rows are isolated from each other, and no row is cut"
        out.set("--packing True trained whole texts", "data.response_template", "null", why, Became.changed)


def _attention(given: Given, out: Translation) -> None:
    flag, values = TUNING["use_flash_attn"], given.get("use_flash_attn")
    if values is None:
        out.note(Became.changed, "--use_flash_attn was left out", "model.attention=auto", flag.why)
    else:
        out.set(old_flag("use_flash_attn", values), "model.attention", todays_value("use_flash_attn", flag, values))


def _tracking(given: Given, environment: Mapping[str, str], out: Translation) -> None:
    """Add the trackers of flags, and of environment variables that the first version read."""
    chosen: list[str] = []
    for name in _TRACKERS:
        words = [word for value in given.get(name, []) for word in value.lower().replace(",", " ").split()]
        if words == ["all"]:
            out.drop(old_flag(name, words), "name each tracker, for example tracking=tensorboard")
            continue
        chosen += [todays_word(name, TUNING[name], word) for word in words]
        if words:
            out.note(Became.renamed, old_flag(name, words), f"tracking={','.join(filter(None, chosen)) or 'file'}")
    experiment = _flag_or_variable(given, "experiment", environment, "AIMSTACK_EXPERIMENT")
    aim = {"repo": _aim_place(given, environment), "experiment": experiment}
    if any(value for value, _ in aim.values()):
        chosen.append("aim")
    if names := list(dict.fromkeys(name for name in chosen if name)):
        out.fields["tracking"] = names[0] if len(names) == 1 else hydra_list(names)
    elif not given.keys() & {*_TRACKERS}:
        why = "the early tool used every installed tracker; choose one, for example tracking=aim"
        out.note(Became.changed, "--report_to was left out", "metrics.jsonl alone", why)
    for field, (value, old) in aim.items():
        if value:
            out.set(old, f"tracking.aim.{field}", hydra_word(value))


def _aim_place(given: Given, environment: Mapping[str, str]) -> tuple[str, str]:
    """Aim's repository or server, and the flag or variable that names it."""
    if host := (given.get("aim_remote_server_ip") or [""])[0]:
        port = (given.get("aim_remote_server_port") or ["53800"])[0]
        return f"aim://{host}:{port}", old_flag("aim_remote_server_ip", [host])
    if server := environment.get("AIMSTACK_SERVER", ""):
        return server if "://" in server else f"aim://{server}", f"AIMSTACK_SERVER={server}"
    return _flag_or_variable(given, "aim_repo", environment, "AIMSTACK_DB")


def _flag_or_variable(given: Given, flag: str, environment: Mapping[str, str], variable: str) -> tuple[str, str]:
    """The value of the flag, else of the variable, and which of them it is."""
    if values := given.get(flag):
        return values[0], old_flag(flag, values)
    value = environment.get(variable, "")
    return value, f"{variable}={value}"


def _launcher(given: Given, launch: Given | None, read: Read, out: Translation) -> None:
    flags = dict(launch or {})
    if "fsdp" in given:
        config = given.get("fsdp_config")
        flags |= launcher.read_fsdp_of_training(given["fsdp"], config[0] if config else None, read)
        flags.pop("multi_gpu", None)
    if "fsdp_transformer_layer_cls_to_wrap" in given:
        flags["fsdp_transformer_layer_cls_to_wrap"] = given["fsdp_transformer_layer_cls_to_wrap"]
    if launch is not None or flags:
        names = old_flag("fsdp", given["fsdp"]) if "fsdp" in given else "the launcher's flags"
        launcher.add_launcher(flags, names, read, out)
        if "fsdp" in given:
            # these two flags were words of --fsdp
            typed_words = ("--fsdp_sharding_strategy", "--fsdp_offload_params") if "fsdp_config" not in given else ()
            out.notes = [replace(note, old=names) if note.old.startswith(typed_words) else note for note in out.notes]
