"""What fmstune says to models to ask, to evaluate, to merge and to push."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.bad_inputs.cases import ROW, Case, assert_answered, case, wrong_inputs

pytestmark = pytest.mark.sampled(20)

ADAPTER = {
    "a/adapter_config.json": '{"peft_type": "LORA", "base_model_name_or_path": "./gone"}',
    "a/adapter_model.safetensors": "",
}


EVALUATE = "evaluate --model package:tiny_llama"


TO_EVALUATE = [
    case("evaluate data=complaints", "--model must be given: a run folder, an adapter or model folder, or a hub id"),
    case("evaluate harness --model package:tiny_llama", "--tasks must be given: names of tasks, with commas"),
    case(
        f"{EVALUATE} --metod=rank peft=lora",
        "evaluate has no flag --metod; did you mean '--method'?",
        "evaluate takes flags, data=CHOICE, data.FIELD=VALUE and seed=N; got 'peft=lora'",
    ),
    case(f"{EVALUATE} --method guess", "argument --method: invalid choice: 'guess' (choose from …"),
    case(
        f"{EVALUATE} --out_file a.txt --batch_size 0 --max_rows 0 --seed -1 --label yes data=complaints",
        "--out_file must end in .json, got a.txt; a table is written next to it, as .md",
        "--batch_size must be at least 1, got 0",
        "--max_rows must be at least 1, got 0",
        "--seed must be at least 0 and below 2**32, got -1",
        "--label: give at least two labels that are not blank, or none for those that the rows have",
    ),
    case(EVALUATE, "--model: package:tiny_llama is not a run with held-out rows; add data=CHOICE and …"),
    case(
        f"{EVALUATE} data=complaints data.eval=null",
        "no row is held out; set data.eval to the rows to evaluate on, or data.eval_fraction",
    ),
    case(f"{EVALUATE} data=text data.eval=gone.jsonl", "data.eval: no file gone.jsonl"),
    case(
        f"{EVALUATE} --out_file /proc/self/e.json data=complaints",
        "--out_file: you have no permission to write into the folder /proc/self; choose another",
    ),
    case(
        f"{EVALUATE} --attention varlen data=complaints",
        "--attention=varlen is for rows that are trained end to end; choose auto or sdpa",
    ),
    case(
        f"{EVALUATE} --no_base --label a --label A data=complaints",
        "--label: two labels are the same but for case and spaces; give each once",
    ),
    case(
        f"{EVALUATE} --label yes --label no data=complaints",
        "no row of 120 is left to evaluate: 120 rows have an answer that is not a --label, and were left out; the "
        "answers that the rows have are 'complaint', 'no complaint'",
    ),
    # these import the harness, which takes seconds
    Case(
        "evaluate harness --model package:tiny_llama --tasks complants --include_path .",
        ("--tasks: the harness has no task 'complants'…",),
        slow=True,
    ),
    Case(
        "evaluate harness --model package:tiny_llama "
        "--tasks boolq,piqa,hellaswag,winogrande,arc_easy,arc_challenge,mmlu",
        ("--tasks: boolq, piqa, hellaswag, winogrande, arc_easy, arc_challenge, mmlu cannot be loaded (…); …",),
        slow=True,
    ),
    case(
        "evaluate harness --model package:tiny_llama --tasks a,,b --include_path nosuch --limit 0 data=complaints",
        "evaluate harness takes flags; got 'data=complaints'",
    ),
    case(
        "evaluate harness --model package:tiny_llama --tasks a,,b --include_path nosuch --limit 0 --num_fewshot -1",
        "--limit must be at least 1, got 0",
        "--num_fewshot must be at least 0, got -1",
        "--tasks: an empty name in 'a,,b'; give names with commas between them",
        "--include_path: no folder nosuch; name the folder that holds the YAML files of the tasks",
    ),
    case(
        "evaluation.sample=4",
        "evaluation.sample needs training.eval_strategy=epoch or steps: samples are generated at each …",
    ),
]


LLAMA = "generate --model package:tiny_llama"


GENERATE = [
    case("generate", "--model must be given: …", "nothing to ask: give --text, --text_file (…) or --rows_file"),
    case("generate --text hi", "--model must be given: a run folder, an adapter or model folder, or a hub id"),
    case(
        f"{LLAMA} --txet=hi peft=lora data.text_field=x",
        "generate has no flag --txet; did you mean '--text'?",
        "generate takes flags, and data.FIELD=VALUE with --format; got 'peft=lora'",
        "data.text_field=x: fields of a data format go with --format",
    ),
    case(f"{LLAMA} --text hi --top_k many", "argument --top_k: invalid int value: 'many' (see fmstune --help)"),
    case(
        "generate --model ./nosuch --out_file nosuch/out.txt --batch_size 0 --max_new_tokens 0 --stop '' --seed -1",
        "--model: no folder nosuch",
        "nothing to ask: give --text, --text_file (one prompt a line; - reads standard input) or --rows_file",
        "--out_file must end in .json (a list) or .jsonl (one line for each answer), got nosuch/out.txt",
        "--batch_size must be at least 1, got 0",
        "--max_new_tokens must be at least 1, got 0",
        "--seed must be at least 0 and below 2**32, got -1",
        "--stop is empty text, which would never stop an answer; leave it out",
    ),
    case(f"{LLAMA} --text hi --out_file nosuch/out.json", "--out_file: no folder nosuch; make it, or …"),
    case(
        f"{LLAMA} --text hi --out_file /proc/self/out.json",
        "--out_file: you have no permission to write into the folder /proc/self; choose another",
    ),
    case(
        "generate --model modle --text hi",
        "--model: no folder is named modle, and it is neither in the hub's cache nor can the hub be reached "
        "(HF_HUB_OFFLINE is set); give --model DIR, set HF_ENDPOINT to a mirror, or fetch it elsewhere: hf download "
        "modle --local-dir modle (then --model modle); did you mean 'model'?",
        model__config_json="{}",
    ),
    case(
        f"{LLAMA} --text hi --text_file promtps.txt --rows_file rows.jsonl",
        "--text and --text_file and --rows_file exclude each other; give one of them",
        "--text_file: no file promtps.txt; did you mean 'prompts.txt'?",
        "--rows_file needs --format, which makes prompts of rows, such as --format alpaca",
        prompts_txt="hi\n",
        rows_jsonl=ROW,
    ),
    case(
        f"{LLAMA} --text hi --temperature 0 --top_k 0 --top_p 2 --repetition_penalty 0",
        "--temperature must be above 0 and finite (leave it out to take the likeliest token), got 0",
        "--top_p must be above 0 and at most 1, got 2",
        "--top_k must be at least 1, got 0",
        "--repetition_penalty must be above 0 and finite, got 0",
        "--temperature, --top_k, --top_p: no effect without --do_sample; add it, or leave the others out",
    ),
    case(
        f"{LLAMA} --text hi --resume --stream",
        "--resume needs an --out_file of JSON lines (.jsonl), got inference_result.json",
        "--stream shows answers as they come, and --resume continues a file; leave one of them out",
    ),
    case(
        f"{LLAMA} --text hi --out_file o.jsonl",
        "--out_file: o.jsonl exists; add --resume to continue it, or choose another",
        o_jsonl="{}\n",
    ),
    case(
        f"{LLAMA} --text hi --out_file o.jsonl --resume",
        "--resume: o.jsonl:1 is not an answer of fmstune generate; choose another file",
        o_jsonl="{}\n",
    ),
    case(
        f"{LLAMA} --text hi --out_file o.jsonl --resume",
        "--resume: o.jsonl:1 answers another prompt than number 1 of these; give the prompts that …",
        o_jsonl='{"input": "ho", "output": "ho ho"}\n',
    ),
    case(f"{LLAMA} --text hi --format alpcaa", "--format: data=alpcaa: no such choice; did you mean 'alpaca'? (…"),
    case(
        f"{LLAMA} --text hi --format text data.text_fild=x", "data.text_fild: unknown field; did you mean 'text_field'?"
    ),
    case(
        f"{LLAMA} --text hi --format tokenized",
        "--format: what a text is to fmstune.data.formats.tokenized is not known; give rows with --rows_file",
    ),
    case(
        f"{LLAMA} --rows_file rows.jsonl --format alpaca",
        "rows.jsonl, row 1: no column 'instruction'; its columns are 'question'",
        rows_jsonl='{"question": "hi"}\n',
    ),
    case(
        f"{LLAMA} --text hi --format chat",
        "--format chat: the model has no chat template; one that was tuned on chat has its own",
    ),
    case(
        f"{LLAMA} --text_file prompts.txt",
        "--text_file: prompts.txt holds no text; write one prompt a line",
        prompts_txt="\n",
    ),
    case(
        f"{LLAMA} --text_file prompts.jsonl",
        "--text_file: prompts.jsonl, line 2 is not a text in JSON; give one prompt a line, in quotes",
        prompts_jsonl='"a"\nb\n',
    ),
    case(f"{LLAMA} --text_file prompts.txt", "--text_file: prompts.txt is not UTF-8 (byte 0); …", prompts_txt=b"\xff"),
    case(
        f"{LLAMA} --text hi --max_new_tokens 512",
        "1 of 1 prompts are too long, first number 1: its … tokens with --max_new_tokens 512 go beyond the 512 …",
    ),
    case(
        f"{LLAMA} --text hi --base_model_name_or_path package:tiny_llama", "--base_model_name_or_path: … whole model …"
    ),
    case(
        "generate --model run --text hi",
        "--model: the run in run has no model (failed); wait for it, or …",
        run__job_yaml="",
        run__summary_json='{"status": "failed"}',
    ),
    case(
        "generate --model run --text hi",
        "--model: the run in run has no model (interrupted); wait for it, or take its checkpoint run/checkpoint-3",
        run__job_yaml="",
        run__summary_json='{"status": "interrupted"}',
        **{"run__checkpoint-3__complete_json": '{"step": 3, "processes": 1, "rows_per_step": 4, "sharded": false}'},
    ),
    case(
        "generate --model run --text hi",
        "--model: run has neither config.json nor adapter_config.json; …",
        run__x_txt="",
    ),
    Case(
        "generate --model a --text hi",
        (
            "--model: a was tuned on ./gone, which is neither a folder here nor available from the hub; pass "
            "--base_model_name_or_path with the folder or hub id of its base",
        ),
        ADAPTER,
    ),
    Case(
        "generate --model a --text hi --base_model_name_or_path ./gone --device cuda",
        ("--base_model_name_or_path: no folder gone",),
        ADAPTER,
    ),
    Case(
        "generate --model a --text hi --base_model_name_or_path bsae",
        (
            "--base_model_name_or_path: no folder is named bsae, and it is neither in the hub's cache nor can the hub "
            "be reached (HF_HUB_OFFLINE is set); give --base_model_name_or_path DIR, …; did you mean 'base'?",
        ),
        {**ADAPTER, "base/config.json": "{}"},
    ),
    Case(
        "generate --model a --text hi",
        ("--model: a: adapter_config.json cannot be read as a configuration (…)",),
        {"a/adapter_config.json": "{"},
    ),
    case(f"{LLAMA} --text hi --device cuda", "--device=cuda is not available here (found cpu)"),
]


NO_TENSORS = b"\x02" + bytes(7) + b"{}"
"""A whole safetensors file: the length of its header, and the header."""

PROMPT: dict[str, str | bytes] = {
    "p/adapter_config.json": '{"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2, '
    '"base_model_name_or_path": "package:tiny_llama"}',
    "p/adapter_model.safetensors": NO_TENSORS,
}


DORA: dict[str, str | bytes] = {
    "d/adapter_config.json": '{"peft_type": "LORA", "use_dora": true, "base_model_name_or_path": "package:tiny_llama"}',
    "d/adapter_model.safetensors": NO_TENSORS,
}


MERGE = [
    case(
        "merge --modle=a --out m peft=lora",
        "merge has no flag --modle; did you mean '--model'?",
        "merge takes flags; got 'peft=lora'",
    ),
    case(
        "merge --weight 1",
        "--model must be given: run folders, adapter folders or hub ids, one flag each",
        "--out must be given: an empty or new folder for the merged model",
    ),
    case(
        "merge --model ./nosuch --model ./nosuch --weight 0 --out m --max_shard_size much --export vllm_lora",
        "--model: no folder nosuch",
        "--model: ./nosuch is given 2 times; give it once, with --weight",
        "--weight is given 1 times for 2 --model; give one for each",
        "--weight must be a number other than 0, got 0",
        "--out: m exists; choose another folder",
        "--max_shard_size must be a size such as 500MB or 5GB, got much",
        "--export vllm_lora takes one adapter as it is; leave --weight and further --model out",
        "--dtype and --max_shard_size apply to a merged model; leave them out with --export",
        m__x_txt="",
    ),
    case("merge --model package:tiny_llama --out /proc/self/m", "--out: you have no permission to write into …"),
    case("merge --model package:tiny_llama --out nosuch/m", "--out: no folder nosuch; make it, or choose …"),
    case("merge --model a --out \udcff", "--out must be a path in UTF-8, got '\\udcff'"),
    case(
        "merge --model a.json --model ~nobody-here/x --out m",
        "--model: a.json is a file; give the folder that holds it",
        "--model: no folder ~nobody-here/x",
        a_json="[]",
    ),
    case("merge --model package:tiny_llama --out m", "--model: … is a whole model, with nothing to merge"),
    case("merge --model package:tiny_llama --out m --parity_rows=-1", "--parity_rows must be at least 0, got -1"),
    case(
        "parity nosuch --rows 0 --endpoint localhost",
        "parity: nosuch is not the folder of a run; give one that holds job.yaml",
        "--rows must be at least 1, got 0",
        "--endpoint must be a URL such as http://127.0.0.1:8000, got localhost",
    ),
    case("parity", "parity takes the folder of one run; got none"),
    case(
        "parity nosuch --gguf m.gguf --dtype bfloat16",
        "parity: nosuch is not the folder of a run; give one that holds job.yaml",
        "--gguf: no file m.gguf",
        "--gguf and --endpoint or --dtype exclude each other: the file says how it is served",
    ),
    Case(
        "merge --model a --out m",
        ("--model: a was tuned on ./gone, which is neither a folder here nor available from the hub; pass …",),
        ADAPTER,
    ),
    Case(
        "merge --model p --model d --out m",
        (
            "--model: p is PROMPT_TUNING: it learnt virtual tokens that stand before each prompt, and changed no "
            "weight that could be merged; fmstune generate and PEFT use it as it is",
            "--model: d is DoRA, which also sets the length of each column, which can neither be weighted nor added …",
        ),
        PROMPT | DORA,
    ),
    Case("merge --model d --out m --export vllm_lora", ("--export vllm_lora: d is DoRA; merge it instead",), DORA),
]

SERVE_AND_CHAT = [
    case("serve", "serve takes the folder of one run, an adapter, a model or a hub id; got none"),
    case("chat a --temprature 1", "chat has no flag --temprature; did you mean '--temperature'?"),
    case(
        "serve package:tiny_llama peft=lora data.x=1",
        "serve takes flags, and data.FIELD=VALUE with --format; got 'peft=lora'",
        "data.x=1: fields of a data format go with --format",
    ),
    case(
        "serve ./nosuch --host 0.0.0.0 --port 70000 --batch_size 0 --max_waiting 0 --grace -1",
        "serve: no folder nosuch",
        "--batch_size must be at least 1, got 0",
        "--port must be at least 0 and below 65536, got 70000",
        "--max_waiting must be at least 1, got 0",
        "--grace must be at least 0, got -1",
        "--host: others reach 0.0.0.0, and the server would answer anyone; set a key in FMSTUNE_API_KEY, which clients "
        "send, or leave --host out",
    ),
    case(
        "serve package:tiny_llama --engine vllm --batch_size 2 --format chat",
        "--batch_size, --format: no effect with --engine vllm; leave out",
    ),
    case(
        "chat package:tiny_llama --compare --no_base --top_p 0.5 --history nosuch/h",
        "--compare shows the base, and --no_base leaves it out; leave one of them out",
        "--top_p: no effect without --temperature; add it, or leave the others out",
        "--history: no folder nosuch; make it, or choose another",
    ),
    case(
        "chat package:tiny_llama --compare", "--compare: the base is not known; name it with --base_model_name_or_path"
    ),
    Case(
        "chat a",
        ("chat: a was tuned on ./gone, which is neither a folder here nor available from the hub; …",),
        ADAPTER,
    ),
    Case("serve d --engine vllm", ("--engine vllm_lora: d is DoRA; merge it instead",), DORA),
]

PUSH = [
    case("push", "push takes one folder, of a run, an adapter or a merged model; got none"),
    case("push run --repo a/b other", "push takes one folder, of a run, an adapter or a merged model; got run, other"),
    case("push run", "--repo must be given: the repository on the hub; a new one is private"),
    case("push run --repos a/b", "push has no flag --repos; did you mean '--repo'?"),
    case(
        "push rum --repo first --dry-run",
        "push: no folder rum; did you mean 'run'?",
        "--repo must be USER/NAME, …",
        run="",
    ),
    case(
        "push run --repo me/a--b --base_model_name_or_path ./base",
        "--repo: the hub refuses the name 'me/a--b'; choose one with at most 96 characters, neither -- nor .. in it, …",
        "--base_model_name_or_path must be the base's id on the hub, got './base'",
        "push needs the hub, and HF_HUB_OFFLINE is set; unset it, or add --dry-run",
        "--repo: to push needs a token with write access; log in with `hf auth login`, or set HF_TOKEN",
        run__config_json="{}",
    ),
    case(
        "push run --repo me/first --dry-run",
        "push: the run in run has no model (failed); wait for it, or choose another",
        run__job_yaml="",
        run__summary_json='{"status": "failed"}',
    ),
    case("push owner/name --repo me/first --dry-run", "push: no folder owner/name"),
    case(
        "push run --repo me/first --dry-run",
        "push: run has no weights (*.safetensors); give a run, an adapter or a merged model",
        run__config_json="{}",
    ),
]


CASES = [*TO_EVALUATE, *GENERATE, *MERGE, *PUSH, *SERVE_AND_CHAT]
indexed: dict[Path, dict[str, Any]] = {}
"""The tasks that come with the harness, as it found them."""


@pytest.fixture(autouse=True)
def _index_of_the_harness_is_made_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness reads 14,000 files for it, which takes ten seconds."""
    if not request.getfixturevalue("wrong").slow:
        return
    from lm_eval.tasks import _index, manager

    build, own = _index.TaskIndex.build, Path(manager.__file__).parent

    def build_once(paths: list[Path]) -> dict[str, Any]:
        if own in paths and own not in indexed:
            indexed[own] = build([own])
        return {**indexed.get(own, {}), **build([path for path in paths if path != own])}

    monkeypatch.setattr(_index.TaskIndex, "build", staticmethod(build_once))


@wrong_inputs(CASES)
def test_a_wrong_request_is_answered_by_one_message_and_leaves_nothing(
    wrong: Case, fmstune: Callable[..., Any], tmp_path: Path
) -> None:
    assert_answered(wrong, fmstune, tmp_path)
