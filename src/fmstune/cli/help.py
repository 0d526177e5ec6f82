"""The help, one screen each: of fmstune (verbs, groups with their choices, examples), and of a verb.

Groups and choices are read from the YAML files, verbs and flags from the dataclasses of `fmstune.config.requests`.
"""

from pathlib import Path

from fmstune.config.flags import flag_lines
from fmstune.config.groups import GROUPS, choices
from fmstune.config.requests import OPTIONS, Composing, Harness, HydraFlags, Verb, summary

_JOB = "[GROUP=CHOICE ...] [FIELD=VALUE ...]"
_USAGE = {
    Verb.reproduce: "RUN [FIELD=VALUE ...]",
    Verb.generate: "--model PLACE --text TEXT [--format CHOICE data.FIELD=VALUE ...]",
    Verb.evaluate: "--model PLACE [data=CHOICE] [data.FIELD=VALUE ...] | harness --model PLACE --tasks A,B",
    Verb.merge: "--model PLACE --out DIR",
    Verb.from_fms: "[--run] 'COMMAND' | -- COMMAND | FILE (a script, JSON, or JSON in base64) | -",
    Verb.report: "RUN_OR_SWEEP",
    Verb.compare: "RUN_A RUN_B",
    Verb.doctor: "",
}
"""The words that follow a verb, if they are not groups and fields."""
_WIDTH = max(map(len, GROUPS))


def help_text(verb: Verb | None = None, extra: Path | None = None) -> str:
    """The text of `fmstune --help`, and with a verb of `fmstune VERB --help`."""
    return "\n".join(_verb_lines(verb, extra) if verb is not None else _command_lines(extra))


def _command_lines(extra: Path | None) -> list[str]:
    return [
        f"usage: fmstune [VERB] {_JOB}",
        "",
        "verbs (fmstune VERB --help lists the flags of each)",
        *(f"  {verb.value:<{_WIDTH}}  {summary(verb)}" for verb in Verb),
        "",
        *_job_lines(extra),
        "",
        "examples",
        "  fmstune model=causal_lm model.path=./my_model peft=lora data=text data.train=rows.jsonl",
        "  fmstune check model=llama2_13b peft=lora data=alpaca data.train=alpaca.json",
        "  fmstune -m training.learning_rate=1e-5,1e-4 peft=lora,full",
        "  fmstune show-data data=text data.train=rows.jsonl 'data.response_template=\"\\n### Label:\"'",
    ]


def _verb_lines(verb: Verb, extra: Path | None) -> list[str]:
    """How one verb is used; groups where it takes them."""
    lines = [f"usage: fmstune {verb.value} {_USAGE.get(verb, _JOB)}".rstrip(), "", summary(verb)]
    lines += ["", f"flags of {verb.value}", *(f"  {line}" for line in flag_lines(OPTIONS[verb]))]
    if verb is Verb.evaluate:
        own = [line for line in flag_lines(Harness) if line not in flag_lines(OPTIONS[verb])]
        lines += ["", "flags of evaluate harness, with most of the above", *(f"  {line}" for line in own)]
    if issubclass(OPTIONS[verb], Composing):
        lines += ["", *_job_lines(extra)]
    return [*lines, "", "fmstune --help lists all verbs"]


def _job_lines(extra: Path | None) -> list[str]:
    return [
        "groups",
        *(f"  {group:<{_WIDTH}}  {', '.join(choices(group, extra))}" for group in GROUPS),
        "",
        "fields: every field of the job by its dotted name; training takes every field of trl.SFTConfig,",
        "        peft every field of its PEFT configuration. fmstune --cfg job prints the composed job.",
        "",
        "flags of a job",
        *(f"  {line}" for line in flag_lines(HydraFlags)),
        "  --hydra-help, --shell-completion install=bash   Hydra's own help, and tab completion",
    ]
