"""What was typed → verb, fmstune's own flags, and the words that Hydra gets; pure functions of text."""

import argparse
import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from fmstune.config.job import Attention, Device, Dtype
from fmstune.config.requests import (
    NOTHING_TO_ASK,
    PROMPTS,
    Comparison,
    Export,
    Generation,
    Harness,
    Merge,
    Method,
    Report,
    Request,
    Scoring,
)
from fmstune.config.verbs import Verb
from fmstune.errors import Problem, UserError, did_you_mean, raise_if_any


@dataclass(frozen=True)
class CommandLine:
    """The words of one command, sorted by who reads them."""

    verb: Verb
    hydra: tuple[str, ...]
    """Words for Hydra: overrides and its own flags."""
    trusted: tuple[str, ...] = ()
    """Packages that `--trust` allows as `_target_` of a format."""
    from_job: Path | None = None
    """`train --from` and `check --from`: the frozen job to repeat."""
    resume: Path | None = None
    """`--resume`: the folder of the sweep to go on with."""
    command: tuple[str, ...] = ()
    """Words of that sweep's command, where they are not those of this line."""
    sources: bool = False
    """`check --sources` and `--cfg job --sources`: show where each field comes from."""
    json: Path | None = None
    """`show-data --json`: where to write every training row."""
    html: Path | None = None
    """`show-data --html`: where to write the view as a page."""
    rows: int = 3
    """`show-data --rows`: how many rows to print."""
    clear_cache: bool = False
    """`doctor --clear-cache`: delete the tokenised data."""
    request: Request | None = None
    """What `generate`, `evaluate`, `merge`, `report` or `compare` is to do; the words for Hydra choose its rows."""
    data_format: str | None = None
    """`generate --format`: a choice of the data group."""
    old_command: tuple[str, ...] = ()
    """`from-fms`: the early tool's words, or its text or file as one word."""
    run_it: bool = False
    """`from-fms --run`: run the translation, too."""
    run: Path | None = None
    """`reproduce RUN`: the folder of the run to repeat."""
    strict: bool = False
    """`reproduce --strict`: refuse where a recorded fact differs."""
    typed: tuple[str, ...] = ()
    """All words as they were typed, to be recorded."""
    help: bool = False
    version: bool = False


def parse(words: Sequence[str]) -> CommandLine:
    """Take off the verb and fmstune's own flags; the rest is Hydra's."""
    verb, rest = Verb.train, list(words)
    if rest and _may_be_verb(rest[0]):
        known = [v.value for v in Verb]
        if rest[0] not in known:
            hint = did_you_mean(rest[0], known)
            raise UserError("", f"unknown verb {rest[0]!r}{hint}; the verbs are {', '.join(known)}")
        verb = Verb(rest.pop(0))
    if verb is Verb.from_fms:
        return _from_fms(rest)
    harness = verb is Verb.evaluate and rest[:1] == ["harness"]
    options, hydra = _flags(verb, harness=harness).parse_known_args(rest[1:] if harness else rest)
    given = vars(options)
    given["trusted"] = tuple(given["trusted"])
    if given.get("rows", 0) < 0:
        raise UserError("--rows", f"must be at least 0, got {given['rows']}")
    if given.get("json") and given["json"] == given["html"]:
        raise UserError("--json", f"and --html both name {given['json']}; give each a file of its own")
    if verb is Verb.generate:
        return _generate(given, hydra)
    if verb is Verb.merge:
        return _merge(given, hydra)
    if verb is Verb.reproduce:
        return _reproduce(given, hydra)
    if verb in (Verb.report, Verb.compare):
        return _looked_back(verb, given, hydra)
    if verb is Verb.evaluate:
        return _evaluate(given, hydra, Harness if harness else Scoring)
    if verb is Verb.doctor and hydra:
        raise UserError("doctor", f"takes no {hydra[0]!r}; its flags are --clear-cache, --help and --version")
    return CommandLine(verb=verb, hydra=tuple(hydra), **given)


def _from_fms(words: Sequence[str]) -> CommandLine:
    """The old command: all words after our own flags, whose `--` may stand between."""
    own = {"--run", "--help", "-h", "--version"}
    count = next((place for place, word in enumerate(words) if word not in own), len(words))
    flags, old = words[:count], words[count:]
    if old and old[0].startswith("--") and old[0] != "--":
        raise UserError(
            "from-fms", f"has no flag {old[0]}{did_you_mean(old[0], own)}; the old command follows after --"
        )
    if len(old) == 2 and old[1] == "--run":
        # behind the quoted command, where one would write it
        flags, old = [*flags, "--run"], old[:1]
    return CommandLine(
        verb=Verb.from_fms,
        hydra=(),
        old_command=tuple(old[1:] if old[:1] == ["--"] else old),
        run_it="--run" in flags,
        help="--help" in flags or "-h" in flags,
        version="--version" in flags,
    )


def _generate(given: dict[str, Any], words: Sequence[str]) -> CommandLine:
    """The request of `generate`; raises UserError with every word that is no flag of it."""
    data_format = given.pop("format")
    own = {name: given.pop(name) for name in ("help", "version", "trusted")}
    if own["help"] or own["version"]:
        return CommandLine(verb=Verb.generate, hydra=(), data_format=data_format, **own)
    config_dir = given.pop("config_dir")
    known = [f"--{name}" for name in (*given, "format", "config-dir", "trust")]
    raise_if_any(_not_of_generate(words, known, data_format))
    if given["model"] is None:
        nothing = [] if any(given[name] is not None for name in PROMPTS) else [NOTHING_TO_ASK]
        needed = "must be given: a run folder, an adapter or model folder, or a hub id"
        raise UserError.of([Problem("--model", needed), *nothing])
    given["stop"] = tuple(given["stop"])
    kinds = {"dtype": Dtype, "attention": Attention, "device": Device}
    given |= {name: kind(given[name]) for name, kind in kinds.items()}
    hydra = (*(() if config_dir is None else ("--config-dir", config_dir)), *words)
    return CommandLine(verb=Verb.generate, hydra=hydra, request=Generation(**given), data_format=data_format, **own)


def _merge(given: dict[str, Any], words: Sequence[str]) -> CommandLine:
    """The request of `merge`; raises UserError with every word that is no flag of it."""
    own = {name: given.pop(name) for name in ("help", "version", "trusted")}
    if own["help"] or own["version"]:
        return CommandLine(verb=Verb.merge, hydra=(), **own)
    known = [f"--{name}" for name in given]
    raise_if_any(
        Problem("merge", f"has no flag {flag}{did_you_mean(flag, known)}")
        if flag.startswith("-")
        else Problem("merge", f"takes flags; got {flag!r}")
        for flag in (word.partition("=")[0] for word in words)
    )
    needed = {"model": "run or adapter folders, or hub ids", "out": "a folder to write"}
    raise_if_any(Problem(f"--{name}", f"must be given: {what}") for name, what in needed.items() if not given[name])
    given |= {name: tuple(given[name]) for name in ("model", "weight")}
    given |= {"dtype": Dtype(given["dtype"]), "export": Export(given["export"]) if given["export"] else None}
    return CommandLine(verb=Verb.merge, hydra=(), request=Merge(**given), **own)


def _reproduce(given: dict[str, Any], words: Sequence[str]) -> CommandLine:
    """The run to repeat, and the fields to change."""
    runs = [word for word in words if not word.startswith("-") and "=" not in word]
    if given["help"] or given["version"]:
        return CommandLine(verb=Verb.reproduce, hydra=(), **given)
    raise_if_any(
        Problem("reproduce", f"has no flag {word.partition('=')[0]}{did_you_mean(word, ['--strict', '--trust'])}")
        for word in words
        if word.startswith("-")
    )
    if len(runs) != 1:
        raise UserError(
            "reproduce", f"takes the folder of one run, such as runs/first; got {', '.join(runs) or 'none'}"
        )
    changes = tuple(word for word in words if "=" in word)
    return CommandLine(verb=Verb.reproduce, hydra=changes, run=Path(runs[0]), **given)


def _looked_back(verb: Verb, given: dict[str, Any], words: Sequence[str]) -> CommandLine:
    """The request of `report` and `compare`: folders, and flags of theirs; raises UserError with every other word."""
    own = {name: given.pop(name) for name in ("help", "version", "trusted")}
    if own["help"] or own["version"]:
        return CommandLine(verb=verb, hydra=(), **own)
    known = [f"--{name}" for name in given]
    flags = [word.partition("=")[0] for word in words if word.startswith("-")]
    raise_if_any(Problem("", f"{verb.value} has no flag {flag}{did_you_mean(flag, known)}") for flag in flags)
    if verb is Verb.report:
        if len(words) != 1:
            raise UserError("report", f"takes one folder, of a run or of runs such as a sweep's; got {len(words)}")
        return CommandLine(verb=verb, hydra=(), request=Report(folder=words[0], **given), **own)
    if len(words) != 2:
        raise UserError("compare", f"takes two run folders; got {len(words)}")
    return CommandLine(verb=verb, hydra=(), request=Comparison(a=words[0], b=words[1], **given), **own)


def _evaluate(given: dict[str, Any], words: Sequence[str], kind: type[Scoring] | type[Harness]) -> CommandLine:
    """The request of `evaluate`; raises UserError with every word that is no flag of it."""
    own = {name: given.pop(name) for name in ("help", "version", "trusted")}
    if own["help"] or own["version"]:
        return CommandLine(verb=Verb.evaluate, hydra=(), **own)
    config_dir = given.pop("config_dir", None)
    known = [*(f"--{name}" for name in given), "--config-dir", "--trust"]
    raise_if_any(_not_of_evaluate(words, known, kind))
    needed = {"model": "a run folder, an adapter or model folder, or a hub id", "tasks": "names of tasks, with commas"}
    raise_if_any(
        Problem(f"--{name}", f"must be given: {what}") for name, what in needed.items() if given.get(name, "-") is None
    )
    enums = {"dtype": Dtype, "attention": Attention, "device": Device, "method": Method}
    given |= {name: enum(given[name]) for name, enum in enums.items() if name in given}
    if kind is Harness:
        given["tasks"] = tuple(name.strip() for name in given["tasks"].split(","))
    else:
        given |= {"label": tuple(given["label"]), "trusted": own["trusted"]}
    hydra = (*(() if config_dir is None else ("--config-dir", config_dir)), *words)
    return CommandLine(verb=Verb.evaluate, hydra=hydra, request=kind(**given), **own)


def _not_of_evaluate(words: Sequence[str], known: Sequence[str], kind: type) -> Iterator[Problem]:
    for word in words:
        flag, equals, _ = word.partition("=")
        if word.startswith("-"):
            yield Problem("evaluate", f"has no flag {flag}{did_you_mean(flag, known)}")
        elif kind is Harness:
            yield Problem("evaluate", f"harness takes flags; got {word!r}")
        elif not equals or not (flag in ("data", "seed") or flag.startswith("data.")):
            yield Problem("evaluate", f"takes flags, data=CHOICE, data.FIELD=VALUE and seed=N; got {word!r}")


def _not_of_generate(words: Sequence[str], known: Sequence[str], data_format: str | None) -> Iterator[Problem]:
    for word in words:
        if word.startswith("-"):
            flag = word.partition("=")[0]
            yield Problem("generate", f"has no flag {flag}{did_you_mean(flag, known)}")
        elif not word.startswith("data.") or "=" not in word:
            yield Problem("generate", f"takes flags, and data.FIELD=VALUE with --format; got {word!r}")
        elif data_format is None:
            yield Problem("", f"{word}: fields of a data format go with --format")


def _may_be_verb(word: str) -> bool:
    return not word.startswith("-") and re.fullmatch(r"[\w-]+", word) is not None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError("", f"{message} (see fmstune --help)")


def _flags(verb: Verb, *, harness: bool = False) -> argparse.ArgumentParser:
    """The flags of one verb; all others go through to Hydra, which refuses what it does not know."""
    parser = _Parser(prog="fmstune", add_help=False, allow_abbrev=False)
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--trust", dest="trusted", action="append", default=[], metavar="PACKAGE")
    if verb in (Verb.train, Verb.check):
        parser.add_argument("--sources", action="store_true")
        parser.add_argument("--from", dest="from_job", type=Path, metavar="JOB_YAML")
    if verb is Verb.reproduce:
        parser.add_argument("--strict", action="store_true")
    if verb is Verb.train:
        parser.add_argument("--resume", type=Path, metavar="SWEEP_DIR")
    if verb is Verb.show_data:
        parser.add_argument("--json", type=Path, metavar="FILE")
        parser.add_argument("--html", type=Path, metavar="FILE")
        parser.add_argument("--rows", type=int, default=3, metavar="N")
    if verb is Verb.generate:
        _generate_flags(parser)
    if verb is Verb.merge:
        _merge_flags(parser)
    if verb is Verb.report:
        parser.add_argument("--metric")
        parser.add_argument("--direction", choices=["minimize", "maximize"])
    if verb is Verb.compare:
        parser.add_argument("--html", metavar="FILE")
    if verb is Verb.evaluate:
        _evaluate_flags(parser, harness=harness)
    if verb is Verb.doctor:
        parser.add_argument("--clear-cache", action="store_true")
    return parser


def _generate_flags(parser: argparse.ArgumentParser) -> None:
    """One flag for each field of `Generation`, under its name, with its default."""
    default = Generation(model="")
    for name in ("model", "base_model_name_or_path", "text", "text_file", "rows_file"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--format")
    parser.add_argument("--config-dir")
    parser.add_argument("--out_file", default=default.out_file)
    for name in ("force", "resume", "only_new_text", "stream", "do_sample"):
        parser.add_argument(f"--{name}", action="store_true")
    for name in ("batch_size", "max_new_tokens", "seed"):
        parser.add_argument(f"--{name}", type=int, default=getattr(default, name))
    parser.add_argument("--top_k", type=int)
    for name in ("temperature", "top_p", "repetition_penalty"):
        parser.add_argument(f"--{name}", type=float)
    parser.add_argument("--stop", action="append", default=[])
    for name, kind in (("dtype", Dtype), ("attention", Attention), ("device", Device)):
        parser.add_argument(f"--{name}", choices=[one.value for one in kind], default=kind.auto.value)


def _evaluate_flags(parser: argparse.ArgumentParser, *, harness: bool) -> None:
    """One flag for each field of `Scoring` or `Harness`, under its name, with its default."""
    for name in ("model", "base_model_name_or_path"):
        parser.add_argument(f"--{name}")
    for name in ("force", "no_base"):
        parser.add_argument(f"--{name}", action="store_true")
    for name, kind in (("dtype", Dtype), ("attention", Attention), ("device", Device)):
        parser.add_argument(f"--{name}", choices=[one.value for one in kind], default=kind.auto.value)
    default: Scoring | Harness = Harness(model="", tasks=()) if harness else Scoring(model="")
    numbers = ("num_fewshot", "limit") if harness else ("max_rows", "max_new_tokens")
    for name in ("batch_size", "seed", *numbers):
        parser.add_argument(f"--{name}", type=int, default=getattr(default, name))
    parser.add_argument("--out_file", default=default.out_file)
    if harness:
        parser.add_argument("--tasks")
        parser.add_argument("--include_path")
        return
    parser.add_argument("--config-dir")
    parser.add_argument("--method", choices=[one.value for one in Method], default=Scoring.method.value)
    parser.add_argument("--label", action="append", default=[])


def _merge_flags(parser: argparse.ArgumentParser) -> None:
    """One flag for each field of `Merge`, under its name, with its default."""
    parser.add_argument("--model", action="append", default=[])
    parser.add_argument("--weight", action="append", type=float, default=[])
    parser.add_argument("--base_model_name_or_path")
    parser.add_argument("--force", action="store_true")
    parser.add_argument("--out")
    parser.add_argument("--export", choices=[one.value for one in Export])
    parser.add_argument("--dtype", choices=[one.value for one in Dtype], default=Merge.dtype.value)
    parser.add_argument("--max_shard_size", default=Merge.max_shard_size)


def choice_problems(words: Sequence[str], groups: Container[str]) -> Iterator[Problem]:
    """What Hydra would answer with a traceback: no name before the `=`, or a group without a choice."""
    for word in words:
        key, _, value = word.lstrip("~+").partition("=")
        if not key and "=" in word:
            yield Problem("", f"{word}: name the field before the =")
        elif key in groups and (word.startswith("~") or value == "null"):
            yield Problem("", f"{word}: choose {key}=NAME, or leave it out for the default")


def force_plain_overrides(words: Sequence[str], groups: Container[str]) -> list[str]:
    """Let `key=value` set any key, so that `fmstune.config.freeze` reports all unknown keys at once, with suggestions.

    Hydra would stop at the first, and would want a `+` before fields that no YAML lists.
    """
    return [_forced(word, groups) for word in words]


def _forced(word: str, groups: Container[str]) -> str:
    match = re.match(r"([A-Za-z_]\w*(?:\.\w+)*)=", word)
    if match is None or match[1] in groups or match[1].partition(".")[0] == "hydra":
        return word
    return f"++{word}"


def swept_keys(words: Sequence[str]) -> frozenset[str]:
    """The keys that several values are given for: `a=1,2`, and Hydra's functions that give several."""
    given = [match for word in words if (match := re.fullmatch(r"([\w./@+]+)=(.*)", word, flags=re.DOTALL))]
    return frozenset(match[1].lstrip("+") for match in given if _are_several(match[2]))


def _are_several(value: str) -> bool:
    """Whether Hydra makes several values of this: a comma that stands in no list, mapping, call or quotes divides."""
    if re.match(r"(?:(?:tag|int|float)\(.*)?(?:range|choice|interval|glob|shuffle|sort)\(", value):
        return True
    bare = re.sub(r"\\.", "", value, flags=re.DOTALL)
    bare = re.sub(r"\"[^\"]*\"|'[^']*'", "", bare)
    inner = re.compile(r"\[[^][(){}]*\]|\([^][(){}]*\)|\{[^][(){}]*\}")
    while inner.search(bare):
        bare = inner.sub("", bare)
    return "," in bare
