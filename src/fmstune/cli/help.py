"""The help of fmstune and of a verb: groups come from the YAML files, verbs and flags from `config.requests`."""

import textwrap
from pathlib import Path

from fmstune.config.flags import flag_lines
from fmstune.config.groups import GROUPS, choices, short_list
from fmstune.config.requests import JOB_USAGE, Composing, Harness, HydraFlags, Verb, summary

_WIDTH = max(map(len, GROUPS))


def help_text(verb: Verb | None = None, extra: Path | None = None) -> str:
    """The text of `fmstune --help`, and with a verb of `fmstune VERB --help`."""
    if verb is not None:
        return "\n".join(_verb_lines(verb, extra))
    lines = [
        f"usage: fmstune [VERB] {JOB_USAGE}",
        "",
        "verbs (fmstune VERB --help lists the flags of each)",
        *(f"  {verb:<{_WIDTH}}  {summary(verb)}" for verb in Verb),
        "",
        *_job_lines(extra),
        "",
        "examples",
        "  fmstune model=causal_lm model.path=./my_model peft=lora data=text data.train=rows.jsonl",
        "  fmstune check model=llama2_13b peft=lora data=alpaca data.train=alpaca.json",
        "  fmstune -m training.learning_rate=1e-5,1e-4 peft=lora,full",
        "  fmstune show-data data=text data.train=rows.jsonl 'data.response_template=\"\\n### Label:\"'",
    ]
    return "\n".join(lines)


def _verb_lines(verb: Verb, extra: Path | None) -> list[str]:
    """How one verb is used; groups where it takes them."""
    flags = flag_lines(verb.options)
    lines = [f"usage: fmstune {verb} {verb.usage}".rstrip(), "", summary(verb)]
    lines += ["", f"flags of {verb}", *(f"  {line}" for line in flags)] if flags else []
    if verb is Verb.evaluate:
        own = [line for line in flag_lines(Harness) if line not in flags]
        lines += ["", "flags of evaluate harness, with most of the above", *(f"  {line}" for line in own)]
    if issubclass(verb.options, Composing):
        lines += ["", *_job_lines(extra)]
    return [*lines, "", "fmstune --help lists all verbs"]


def _group_lines(group: str, extra: Path | None) -> list[str]:
    lines = textwrap.wrap(", ".join(short_list(choices(group, extra))), 96)
    return [f"  {'' if number else group:<{_WIDTH}}  {line}" for number, line in enumerate(lines)]


def _job_lines(extra: Path | None) -> list[str]:
    return [
        "groups",
        *(line for group in GROUPS for line in _group_lines(group, extra)),
        "",
        "fields: every field of the job by its dotted name; training takes every field of trl.SFTConfig,",
        "        peft every field of its PEFT configuration. fmstune --cfg job prints the composed job.",
        "",
        "flags of a job",
        *(f"  {line}" for line in flag_lines(HydraFlags)),
        "  --hydra-help, --shell-completion install=bash   Hydra's own help, and tab completion",
    ]
