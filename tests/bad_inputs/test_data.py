"""What fmstune says to files, rows, formats, templates and sources that cannot be trained on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.bad_inputs.cases import ROW, ROWS, Case, assert_answered, case, wrong_inputs

pytestmark = pytest.mark.sampled(20)

CHAT = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}\n'

DATA_FILES = [
    case("data=text data.train=nowhere.jsonl", "data.train: no file nowhere.jsonl"),
    case("data=text data.train=row.jsonl", "data.train: no file row.jsonl; did you mean 'rows.jsonl'?", rows_jsonl=ROW),
    case("data=text data.train=a/rows.jsonl", "data.train: no file a/rows.jsonl (no folder a)"),
    case("data=text data.train=[a.jsonl,b.jsonl]", "data.train: no file a.jsonl", "data.train: no file b.jsonl"),
    case("data=text data.train=[]", "data.train is an empty list; name a file, glob, folder or hub id"),
    case("data=text data.train=3", "data.train must name a file, glob, folder or hub id, found 3"),
    case("data=text 'data.train=parts/*.jsonl'", "data.train: no file matches parts/*.jsonl"),
    case("data=text data.train=a", "data.train: the folder a holds no data file (.json .jsonl …)", a__readme_txt="x"),
    case(
        "data=text data.train=owner/name",
        "data.train: no folder is named owner/name, and it is neither in the hub's cache nor can the hub be reached (…",
    ),
    case(
        "data.train=package:complaints/trian.jsonl",
        "data.train: package:complaints/trian.jsonl: no such file ships with fmstune; did you mean 'complaints/train…",
    ),
    case(f"{ROWS} data.quarantine=bad.jsonl", "data.quarantine: no file bad.jsonl…", rows_jsonl=ROW),
    case(
        f"{ROWS} data.quarantine=bad.jsonl",
        "data.quarantine names row 9 of data.train, which has 1 row; correct its number",
        rows_jsonl=ROW,
        bad_jsonl='{"row": 9}',
    ),
    case(f"{ROWS} data.eval=held.jsonl", "data.eval: no file held.jsonl…", rows_jsonl=ROW),
    case(ROWS, "data.train: rows.jsonl holds no rows", rows_jsonl=""),
    case(ROWS, "rows.jsonl:2: broken JSON (… at column 1…); each line is one row", rows_jsonl=ROW + '{"output": "x\n'),
    case(ROWS, "rows.jsonl:1: not UTF-8 (invalid start byte at byte 12); …", rows_jsonl=b'{"output": "\xff"}\n'),
    case(
        "data=text data.train=rows.json",
        "rows.json, row 1: a row must be a JSON object, found the int …",
        "rows.json, row 2: a row must be a JSON object, found the str …",
        rows_json='[1, "x"]',
    ),
    case("data=text data.train=rows.json", "rows.json:1: broken JSON (…)", rows_json='[{"output": "x"},'),
    case(
        "data=text data.text_field=a data.response_template=null data.train=rows.csv",
        "rows.csv, row 2 (line 3): 3 cells for 2 columns; quote commas",
        rows_csv="a,b\nx,y\nx,y,z\n",
    ),
    case(
        "data=text data.train=rows.csv",
        "rows.csv:1: the first line must name each column once, …",
        rows_csv="a,a\n1,2\n",
    ),
    case(
        "data=text data.train=rows.txt", "rows.txt: neither JSON, CSV (named .csv), Parquet nor Arrow; …", rows_txt="x"
    ),
    case("data=text data.train=rows.parquet", "rows.parquet: broken after row 0 (…)", rows_parquet=b"PAR1xxx"),
    case("data=text data.train=rows.arrow", "rows.arrow: broken after row 0 (…)", rows_arrow=b"ARROW1xxxx"),
]


ROW_CONTENTS = [
    case(
        ROWS,
        "rows.jsonl, row 1: no column 'output'; did you mean 'otput'?; its columns are 'otput'",
        rows_jsonl='{"otput": "x"}\n',
    ),
    case(
        "data=alpaca data.train=rows.jsonl",
        "rows.jsonl, row 1: no column 'instruction'; did you mean 'instructions'?; its columns are …",
        rows_jsonl='{"instructions": "x", "output": "y"}\n',
    ),
    case(
        ROWS,
        "rows.jsonl, row 1: column 'output' must hold a string, found the int 3; write it as text",
        "rows.jsonl, row 2: column 'output' must hold a string, found null; write it as text",
        rows_jsonl='{"output": 3}\n{"output": null}\n',
    ),
    case(
        f"{ROWS} data.response_template=Nope:",
        "rows.jsonl, row 1: column 'output' does not contain the response template 'Nope:'; fix the row, set …",
        rows_jsonl=ROW,
    ),
    case(
        ROWS,
        r"rows.jsonl, rows 2, 4: column 'output' does not contain the response template '\n### Response:'; fix the "
        "row, set data.response_template or data.untrainable=drop",
        rows_jsonl=ROW + '{"output":"x"}\n' + ROW + '{"output":"y"}\n',
    ),
    case(
        ROWS,
        "rows.jsonl, row 2: the answer is empty; fix the row, or set data.untrainable=drop",
        rows_jsonl=ROW + '{"output": "a\\n### Response: "}\n',
    ),
    case(
        f"{ROWS} data.max_length=5",
        "rows.jsonl, row 1: data.max_length=5 leaves no token of the answer; raise it, or set data.untrainable=drop",
        rows_jsonl=ROW,
    ),
    case(
        f"{ROWS} data.max_length=5 data.over_length=error",
        "rows.jsonl, row 1: more than data.max_length=5 tokens; raise it, or set data.over_length to truncate or drop",
        rows_jsonl=ROW,
    ),
    case(
        f"{ROWS} data.max_length=5 data.over_length=drop",
        "data.train: no row is left in the train split…",
        rows_jsonl=ROW,
    ),
    case(
        f"{ROWS} data.max_length=1000",
        "the longest row takes 6… tokens, and the model has 512 positions; set data.max_length=512",
        rows_jsonl='{"output": "' + "a b " * 300 + '\\n### Response: yes"}\n',
    ),
    case(
        f"{ROWS} data.eval=held.jsonl data.max_length=1000",
        "data.eval: the longest held-out row takes 6… tokens, and the model has 512 positions; set data.max_length=512",
        rows_jsonl=ROW,
        held_jsonl='{"output": "' + "a b " * 300 + '\\n### Response: yes"}\n',
    ),
    case(
        f"{ROWS} data.eval=held.jsonl data.max_length=512 peft=prompt_tuning peft.num_virtual_tokens=8",
        "data.eval: the longest held-out row takes … tokens and 8 virtual tokens, and the model has 512 positions; "
        "set data.max_length=504",
        rows_jsonl=ROW,
        held_jsonl='{"output": "' + "a b " * 247 + '\\n### Response: y"}\n',
    ),
    case(
        f"{ROWS} data.eval=held.jsonl data.max_length=512",
        "evaluation.max_new_tokens: the longest held-out prompt takes … tokens and its answer up to 64, and the model "
        "has 512 positions; set evaluation.max_new_tokens=…",
        rows_jsonl=ROW,
        held_jsonl='{"output": "' + "a b " * 240 + '\\n### Response: yes"}\n'
        '{"output": "a\\n### Response:' + " a b" * 60 + '"}\n',
    ),
    case(f"{ROWS} data.text_field=null", "data.text_field must name the column that holds the text", rows_jsonl=ROW),
    case(f"{ROWS} data.eval_fraction=0.1", "data.eval_fraction=0.1 holds 0 of 1 rows out, …", rows_jsonl=ROW),
]


FORMATS = [
    case(
        "data.format._target_=mine.rows.format",
        "data.format._target_: 'mine.rows.format' is not in an allowed package (fmstune.data.formats); "
        "if you trust it, add --trust mine",
    ),
    case("--trust mine data.format._target_=mine.rows.format", "data.format._target_: cannot import mine.rows (…)"),
    case("--trust os data.format._target_=os.sep", "data.format._target_: os has no function 'sep'"),
    case(
        "data.format._target_=fmstune.data.formats.txt",
        "data.format._target_: … no function 'txt'; did you mean 'text'?",
    ),
    case(
        "data.format._target_=text",
        "data.format._target_ must name a function such as fmstune.data.formats.text, got 'text'",
    ),
    case(
        "data.format._target_=fmstune.data.formats.labelled_text",
        "data.format.response_template: labelled_text has no such setting",
        "data.format.label_field is missing; labelled_text needs it",
    ),
    case(
        "data=twitter_complaints data.train=rows.jsonl data.format.label_field=3",
        "data.format.label_field must be a string, found the int 3",
        rows_jsonl=ROW,
    ),
    case(
        "data=alpaca data.train=rows.jsonl 'data.response_template=x:' data.text_field=nosuch",
        "data.text_field is not used by alpaca; leave it out",
        "data.response_template is not used by alpaca; leave it out",
        rows_jsonl=ROW,
    ),
    case(
        "data=twitter_complaints data.train=rows.jsonl 'data.response_template=x:'",
        "data.response_template is not used by labelled_text; leave it out",
        rows_jsonl=ROW,
    ),
]


TWO = {"a.jsonl": ROW, "b.jsonl": ROW.replace("answer", "other")}


SOURCES = [
    case(
        "check data=text 'data.train={a: a.jsonl, b: {pth: b.jsonl, wieght: 2, weight: x}}'",
        "data.train.b.pth: unknown field; did you mean 'path'?",
        "data.train.b.wieght: unknown field; did you mean 'weight'?",
        "data.train.b.path must be given",
        "data.train.b.weight must be a number or null, got 'x'",
    ),
    Case(
        "check data=text 'data.train={a: {path: a.jsonl, weight: 0}, b: {path: b.jsonl, max_rows: 0}, b c: nosuch}'",
        (
            "data.train.a.weight must be above 0 and finite, got 0",
            "data.train.b.max_rows must be at least 1, got 0",
            "data.train.b c: a source's name is made of letters, digits, _ and -; change it",
            "data.train.b c: no file nosuch",
            "data.train: a has a weight and b, b c has none; give all of them one, or none",
        ),
        TWO,
    ),
    Case(
        "check data=text data.train=a.jsonl 'data.eval={b: {path: b.jsonl, weight: 1}}'",
        ("data.eval.b.weight: held-out rows are not mixed; leave it out",),
        TWO,
    ),
    case("check data=text data.train={}", "data.train names no source; give some, such as {a: a.jsonl, b: b.jsonl}"),
    case("check data=text 'data.train={a: null}'", "data.train.a must be given: a file, glob, folder or hub id, …"),
    Case(
        "check data=text 'data.train={a: {path: a.jsonl, format: {_target_: os.system}}}'",
        ("data.train.a.format._target_: 'os.system' is not in an allowed package (fmstune.data.formats); …",),
        TWO,
    ),
    Case(
        "check data=text 'data.train={a: a.jsonl}' 'data.eval={b: a.jsonl}'",
        ("data.eval.b holds the same rows as data.train.a; name other rows, …",),
        TWO,
    ),
    Case(
        "check data=text data.train=a.jsonl data.overlap=drp",
        ("data.overlap must be one of keep, drop, error; got 'drp'; did you mean 'drop'?",),
        TWO,
    ),
    Case(
        "check data=text data.train=a.jsonl data.streaming=true data.eval_fraction=0.5 data.overlap=drop "
        "training.dataloader_num_workers=2 training.train_sampling_strategy=group_by_length data.buffer_size=0",
        (
            "data.buffer_size must be at least 1, got 0",
            "data.streaming=true does not know the number of rows; set training.max_steps",
            "data.streaming=true cannot draw the rows of data.eval_fraction; set data.eval",
            "data.streaming=true counts rows in the training process; set training.dataloader_num_workers=0, got 2",
            "training.train_sampling_strategy=group_by_length needs all rows before training; …",
            "data.overlap=drop needs all rows before training; set keep, or data.streaming=false",
        ),
        TWO,
    ),
    Case(
        "check data=text data.train=a.jsonl data.prefix_sharing=true data.streaming=true training.max_steps=2 "
        "peft=prompt_tuning model.attention=sdpa training.packing=true training.label_smoothing_factor=0.1 "
        "training.pad_to_multiple_of=8 training.eval_packing=true",
        (
            "data.prefix_sharing=true: each row begins with the virtual tokens of PromptTuning, and PEFT drops the …",
            "model.attention=sdpa cannot attend to a beginning that stands elsewhere, …; leave it at auto",
            "data.streaming=true reads rows one after the other, …; set one of them to false",
            "training.label_smoothing_factor does not go with data.prefix_sharing: TRL smooths labels by position, …",
            "training.pad_to_multiple_of does not go with data.prefix_sharing: …; leave it out",
            "training.eval_packing does not go with data.prefix_sharing: held-out rows are packed as …; leave it out",
            "training.packing lets documents with virtual tokens (PromptTuning) see each other; …",
            "training.eval_packing lets documents with virtual tokens (PromptTuning) see each other; …",
        ),
        TWO,
    ),
    Case(
        "check data=text data.train=a.jsonl data.prefix_sharing=true model=causal_lm model.path=o/m peft=full "
        "'model.architecture={model_type: recurrent_gemma, hidden_size: 32, num_attention_heads: 4}'",
        ("data.prefix_sharing=true: RecurrentGemmaForCausalLM reads a row token by token into a state, …",),
        TWO,
    ),
    Case(
        "check data=text data.train=a.jsonl data.prefix_sharing=true training.train_sampling_strategy=group_by_length",
        ("training.train_sampling_strategy=group_by_length chooses the rows of a batch by their lengths, …",),
        TWO,
    ),
    Case(
        "check data=text data.train=a.jsonl data.prefix_sharing=true model=causal_lm model.path=o/m peft=full "
        "'model.architecture={model_type: mixtral, hidden_size: 32, num_hidden_layers: 2, vocab_size: 320}'",
        ("training.router_aux_loss_coef must be 0 with data.prefix_sharing: …",),
        TWO,
    ),
    Case(
        "check data=text data.train=a.jsonl data.prefix_sharing=true model=causal_lm model.path=o/m peft=full "
        "'model.architecture={model_type: gemma2, hidden_size: 32, num_hidden_layers: 2}'",
        ("data.prefix_sharing=true needs model.attention=varlen, and Gemma2ForCausalLM has …, …; set it to false",),
        TWO,
    ),
]


TEMPLATES = [
    case("check data=template data.train=rows.jsonl", "data.format.template_file must be given: a Jinja file, …"),
    case(
        "check data=template data.train=rows.jsonl data.format.template_file=rwo.jinja",
        "data.format.template_file: no file rwo.jinja; did you mean 'row.jinja'?",
        rows_jsonl=ROW,
        **{"row.jinja": "x"},
    ),
    case(
        "check data=template data.train=rows.jsonl data.format.template_file=row.jinja",
        "data.format.template_file: row.jinja marks nothing as trained; put the answer between …",
        rows_jsonl=ROW,
        **{"row.jinja": "{{ output }}"},
    ),
    case(
        "check data=template data.train=rows.jsonl data.format.template_file=row.jinja",
        "rows.jsonl, row 1: row.jinja: 'answer' is undefined; the row's columns are 'output'",
        rows_jsonl=ROW,
        **{"row.jinja": "{% generation %}{{ answer }}{% endgeneration %}"},
    ),
    case("model.chat_template=chat.jinja", "model.chat_template: no file chat.jinja"),
    case(
        "check model.chat_template=chat.jinja",
        "model.chat_template: chat.jinja is not a Jinja template (…",
        **{"chat.jinja": "{% if %}"},
    ),
    case(
        "check data=chat data.train=rows.jsonl model.chat_template=chat.jinja",
        "rows.jsonl, row 1: the chat template chat.jinja is stopped, as it calls itself without an end, or is nested …",
        rows_jsonl=CHAT,
        **{"chat.jinja": "{{ messages[0].content }}{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(messages) }}"},
    ),
    case(
        "check model.chat_template=chat.jinja",
        "model.chat_template: chat.jinja: it uses ** (powers), which fmstune does not calculate in templates; …",
        **{"chat.jinja": "{{ 10 ** 10 ** 10 }}"},
    ),
    case(
        "check model.chat_template=chat.jinja",
        "model.chat_template: chat.jinja: it calls itself without an end, or is nested too deeply; simplify the …",
        **{"chat.jinja": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}"},
    ),
    case(
        "model.chat_template=trl:qwen3_train",
        "model.chat_template: trl:qwen3_train: TRL ships no such template; did you mean 'qwen3_training'?",
    ),
    case(
        "check data=chat data.train=rows.jsonl model.chat_template=trl:qwen3_training "
        "data.format.template_kwargs.enable_thinkin=false",
        "data.format.template_kwargs.enable_thinkin: the chat template reads no such variable; did you mean …",
        rows_jsonl=CHAT,
    ),
    case(
        "check data=chat data.train=rows.jsonl model.chat_template=trl:qwen3_training",
        "rows.jsonl, row 1: the chat template leaves out what turn 1 (critic) says; choose a template that writes it …",
        rows_jsonl=CHAT.replace("[", '[{"role": "critic", "content": "Hm."}, '),
    ),
    case(
        "check data=chat data.train=rows.jsonl data.format.train=marked model.chat_template=trl:qwen3_training",
        "rows.jsonl, row 1: no turn is trained: the assistant has none, or flags and data.format.train leave all of …",
        rows_jsonl=CHAT,
    ),
    case(
        "check data=chat data.train=rows.jsonl",
        "data.format: the model's tokenizer has no chat template; set model.chat_template to a Jinja file …",
        rows_jsonl=CHAT,
    ),
]

CASES = [*DATA_FILES, *ROW_CONTENTS, *FORMATS, *SOURCES, *TEMPLATES]


@wrong_inputs(CASES)
def test_wrong_data_is_answered_by_one_message_and_leaves_nothing(
    wrong: Case, fmstune: Callable[..., Any], tmp_path: Path
) -> None:
    assert_answered(wrong, fmstune, tmp_path)
