"""The help, one screen each: of fmstune (verbs, groups with their choices, examples), and of a verb.

Groups and choices are read from the YAML files themselves.
"""

from pathlib import Path

from fmstune.config.groups import GROUPS, choices
from fmstune.config.verbs import SUMMARIES, Verb

_USAGE = {
    Verb.train: "[GROUP=CHOICE ...] [FIELD=VALUE ...]",
    Verb.reproduce: "RUN [FIELD=VALUE ...]",
    Verb.check: "[GROUP=CHOICE ...] [FIELD=VALUE ...]",
    Verb.show_data: "[GROUP=CHOICE ...] [FIELD=VALUE ...]",
    Verb.modules: "[GROUP=CHOICE ...] [FIELD=VALUE ...]",
    Verb.generate: "--model PLACE --text TEXT",
    Verb.evaluate: "[harness] --model PLACE",
    Verb.merge: "--model PLACE --out DIR",
    Verb.from_fms: "[--run] 'COMMAND' | FILE | -",
    Verb.report: "RUN_OR_SWEEP",
    Verb.compare: "A B",
    Verb.doctor: "",
}
"""What follows a verb, its further flags aside."""

_COMPOSING = (Verb.train, Verb.check, Verb.show_data, Verb.modules)
"""Verbs that take a job's groups and fields."""

_FLAGS = {
    Verb.train: [
        "--from RUN/job.yaml   repeat a run (fields can be overridden, groups not)",
        "--resume SWEEP_DIR    go on with a sweep: finished points are skipped",
    ],
    Verb.reproduce: [
        "RUN                   the folder of the run; fields can be overridden, groups not",
        "--strict              run only where nothing that can change the result differs; 2 where the result does",
        "--trust PACKAGE       allow a format, tracker or callback from your own package",
    ],
    Verb.check: [
        "--sources             show which file or override set each field",
        "--from RUN/job.yaml   check a frozen job",
    ],
    Verb.show_data: [
        "--rows N              how many rows to print (3)",
        "--json FILE           write every training row: input_ids, labels, trained_text",
        "--html FILE           write the rows and sums that are printed as one page",
    ],
    Verb.generate: [
        "--model PLACE         a run folder, an adapter, a whole model or a hub id",
        "--base_model_name_or_path PLACE   the adapter's base, where it is not where it was; --force takes any",
        "--text TEXT | --text_file FILE | --rows_file FILE   one prompt | one a line (- is stdin) | rows of --format",
        "--format CHOICE       put the prompt of a data format around texts or rows, such as alpaca or chat;",
        "                      its fields are given as data.FIELD=VALUE; --config-dir and --trust as for training",
        "--out_file FILE       inference_result.json; JSON lines where it ends in .jsonl, and --resume goes on with it",
        "--max_new_tokens N    tokens of an answer at most (20)",
        "--batch_size N        prompts that are continued together (8)",
        "--stop TEXT           end an answer at this text; may be given several times",
        "--only_new_text       leave the input out of the output",
        "--stream              print answers while they are made",
        "--do_sample, --temperature X, --top_k N, --top_p X, --repetition_penalty X, --seed N (42)",
        "--dtype, --attention, --device   as model.dtype, model.attention, launcher.device (auto)",
    ],
    Verb.evaluate: [
        "--model PLACE         a run folder, an adapter, a whole model or a hub id",
        "data=CHOICE, data.FIELD=VALUE   which rows are held out; a run folder has its own",
        "                      --config-dir and --trust as for training",
        "--method METHOD       generate (an answer, greedily) or rank (the likeliest of the labels)",
        "--label TEXT          an answer that is allowed; may be given several times (all that the rows have)",
        "--base_model_name_or_path PLACE   the model to compare with; --no_base compares with none, --force takes any",
        "--max_rows N, --max_new_tokens N (64), --batch_size N (8), --seed N (42)",
        "--out_file FILE       evaluation.json, with evaluation.md beside it",
        "--dtype, --attention, --device   as model.dtype, model.attention, launcher.device (auto)",
        "evaluate harness --model PLACE --tasks A,B   tasks of lm-evaluation-harness (extra eval), with",
        "  --include_path DIR, --num_fewshot N, --limit N, --batch_size N, --out_file FILE (harness.json) and as above",
    ],
    Verb.merge: [
        "--model PLACE         a run, an adapter or a hub id; may be given several times, each with a --weight X",
        "--base_model_name_or_path PLACE   the base, where it is not where it was; --force takes any",
        "--out DIR             folder for the merged model",
        "--dtype DTYPE         of the merged weights; auto is that of the base",
        "--max_shard_size SIZE a file of weights at most (5GB)",
        "--export vllm_lora    write the adapter as vLLM reads it, and merge nothing",
    ],
    Verb.from_fms: [
        "'COMMAND'             one command or more, in single quotes; or its words after --",
        "FILE                  a script, or a job file (JSON, or JSON in base64); - is stdin",
        "--run                 run the translation, too",
    ],
    Verb.report: [
        "RUN_OR_SWEEP          a run folder, or a folder of runs",
        "--metric NAME         figure of summary.json to compare runs by, such as tuned.exact_match (tuned.eval_loss)",
        "--direction DIRECTION minimize or maximize, where the name of the figure does not tell",
    ],
    Verb.compare: [
        "A B                   two run folders",
        "--html FILE           write the comparison as one page, with the curves",
    ],
    Verb.doctor: ["--clear-cache         delete the tokenised data"],
}


def text(verb: Verb | None = None, extra: Path | None = None) -> str:
    """What `fmstune --help` prints, and with a verb `fmstune VERB --help`."""
    lines = _of_verb(verb, extra) if verb is not None else _of_all(extra)
    return "\n".join(lines)


def _of_all(extra: Path | None) -> list[str]:
    width = max(len(group) for group in GROUPS)
    return [
        "usage: fmstune [VERB] [GROUP=CHOICE ...] [FIELD=VALUE ...]",
        "",
        "verbs",
        *(f"  {verb.value:<{width}}  {summary}" for verb, summary in SUMMARIES.items()),
        "",
        *_groups(extra),
        "",
        "flags (fmstune VERB --help lists those of a verb)",
        *_OF_A_JOB,
        "  --info, --hydra-help, --shell-completion install=bash   Hydra's own",
        "",
        "examples",
        "  fmstune",
        "  fmstune model=causal_lm model.path=./my_model peft=lora data=text data.train=rows.jsonl",
        "  fmstune check model=llama2_13b peft=lora data=alpaca data.train=alpaca.json",
        "  fmstune -m training.learning_rate=1e-5,1e-4 peft=lora,full",
        "  fmstune show-data data=text data.train=rows.jsonl 'data.response_template=\"\\n### Label:\"'",
    ]


_OF_A_JOB = (
    "  -m, --multirun        one run for each combination of comma-separated values",
    "  --cfg job             print the composed job and stop; --sources: where each field comes from",
    "  --config-dir DIR      your own groups beside these",
    "  --trust PACKAGE       allow a format, tracker or callback from your own package",
)


def _of_verb(verb: Verb, extra: Path | None) -> list[str]:
    """How one verb is used; groups where it takes them."""
    lines = [f"usage: fmstune {verb.value} {_USAGE[verb]}".rstrip(), "", SUMMARIES[verb]]
    if verb in _FLAGS:
        lines += ["", f"flags of {verb.value}", *(f"  {flag}" for flag in _FLAGS[verb])]
    if verb in _COMPOSING:
        # only training has several runs, and prints a job
        lines += ["", "flags of a job", *_OF_A_JOB[0 if verb is Verb.train else 2 :], "", *_groups(extra)]
    return [*lines, "", "fmstune --help lists all verbs"]


def _groups(extra: Path | None) -> list[str]:
    width = max(len(group) for group in GROUPS)
    return [
        "groups",
        *(f"  {group:<{width}}  {', '.join(choices(group, extra))}" for group in GROUPS),
        "",
        "fields: every field of the job by its dotted name; training takes every field of trl.SFTConfig,",
        "        peft every field of its PEFT configuration. fmstune --cfg job prints the composed job.",
    ]
