"""Ollama's Modelfile: the template, the stop texts and the system text that the model was tuned with."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from fmstune.data.chat_template import answer_ends
from fmstune.errors import UserError
from fmstune.evaluation import prompts
from fmstune.runs.run_folder import CHAT
from fmstune.serving.llama_cpp.vocabulary import begins_with_bos

_SYSTEM, _FIRST, _ANSWER, _SECOND = "\ue000s\ue001", "\ue000u\ue001", "\ue000a\ue001", "\ue000v\ue001"
"""Texts that no template has, so that what stands around them is found."""


class Turns(NamedTuple):
    """What a chat template writes around each turn."""

    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]
    begins_answer: str = ""
    default_system: str | None = None
    """The system text that it writes where none is given."""


def write_modelfile(
    file: str, tokenizer: PreTrainedTokenizerBase, format: Mapping[str, Any] | None, positions: int
) -> tuple[str, str | None]:
    """The text of a Modelfile for a GGUF file, and a note where its template had to be left out."""
    lines, note, system = [f"FROM ./{file}"], None, None
    is_chat = format is None or format["_target_"] == CHAT
    if is_chat and tokenizer.chat_template is not None:
        turns = read_turns(tokenizer)
        template = None if turns is None else _go_template(turns)
        system = turns.default_system if turns is not None else None
        if template is None:
            note = "the chat template does more than write turns one behind the other, so Ollama takes it from the file"
    else:
        template = _prompt_template(tokenizer, format)
        if template is None:
            template, note = "{{ .Prompt }}", "Ollama asks with the text alone: what a text is to the format is unknown"
    if template is not None:
        lines.append(f"TEMPLATE {_quoted(template)}")
    if system is not None:
        lines.append(f"SYSTEM {_quoted(system)}")
    ends = {tokenizer.eos_token, *(end.text.strip() for end in answer_ends(tokenizer) if is_chat)} - {None, ""}
    lines += [f"PARAMETER stop {json.dumps(end, ensure_ascii=False)}" for end in sorted(map(str, ends))]
    lines += [f"PARAMETER num_ctx {positions}", "PARAMETER temperature 0"]
    return "\n".join(lines) + "\n", note


def _quoted(text: str) -> str:
    return f'"""{text}"""'


def read_turns(tokenizer: PreTrainedTokenizerBase) -> Turns | None:
    """What the chat template writes around each turn; None where turns decide about each other, or it refuses some."""
    user, answer = {"role": "user", "content": _FIRST}, {"role": "assistant", "content": _ANSWER}
    second, system = {"role": "user", "content": _SECOND}, {"role": "system", "content": _SYSTEM}
    try:
        whole = _rendered(tokenizer, [system, user, answer, second])
        bare = _rendered(tokenizer, [user])
        alone = _rendered(tokenizer, [system, user])
    except Exception:  # a template raises what it likes
        return None
    if [whole.count(text) for text in (_SYSTEM, _FIRST, _ANSWER, _SECOND)] != [1] * 4:
        return None
    before, rest = whole.split(_SYSTEM)
    to_user, rest = rest.split(_FIRST)
    to_answer, rest = rest.split(_ANSWER)
    to_second, begins = rest.split(_SECOND)
    ends_user = _common_start(to_answer, begins)
    begins_answer = begins.removeprefix(ends_user)
    if to_answer.removeprefix(ends_user) != begins_answer:
        return None
    shared, found = _common_end(to_user, to_second), list[Turns]()
    # a system text may end as an answer does: then a conversation without one tells where a user's turn begins
    for front in (shared[start:] for start in range(len(shared) + 1)):
        around = (before, to_user.removesuffix(front))
        turns = Turns(around, (front, ends_user), (begins_answer, to_second.removesuffix(front)), begins_answer)
        if _whole(turns, _SYSTEM) != alone:
            return None
        found.append(turns)
    for turns in found:
        if _written(turns, [("user", _FIRST)]) == bare:
            return turns
    # a user's turn begins as the system's does, such as with one token
    found.sort(key=lambda turns: -len(_common_start(turns.user[0], before)))
    return next((known for turns in found if (known := _with_default(turns, bare)) is not None), None)


def _with_default(turns: Turns, bare: str) -> Turns | None:
    """The turns with the system text that a conversation without one has; None where it has something else."""
    front, back = turns.system
    given = bare.removesuffix(_written(turns, [("user", _FIRST)])).removeprefix(front).removesuffix(back)
    return turns._replace(default_system=given) if _whole(turns, given) == bare else None


def _whole(turns: Turns, system: str) -> str:
    return _written(turns, [("system", system), ("user", _FIRST)])


def _rendered(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]]) -> str:
    """The conversation as the template writes it, without the first token, which llama.cpp adds."""
    text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    return text.removeprefix(str(tokenizer.bos_token)) if begins_with_bos(tokenizer) else text


def _written(turns: Turns, given: list[tuple[str, str]]) -> str:
    around = turns._asdict()
    return "".join(f"{around[role][0]}{text}{around[role][1]}" for role, text in given) + turns.begins_answer


def _common_end(one: str, other: str) -> str:
    count = 0
    while count < min(len(one), len(other)) and one[-1 - count] == other[-1 - count]:
        count += 1
    return one[len(one) - count :]


def _common_start(one: str, other: str) -> str:
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return one[:count]


def _go_template(turns: Turns) -> str:
    """The turns in the language of Go's templates, as Ollama's documents have it (docs/template.md)."""
    cases = [
        f'{{{{ {"if" if number == 0 else "else if"} eq .Role "{role}" }}}}{front}{{{{ .Content }}}}{back}'
        for number, (role, (front, back)) in enumerate(
            (("system", turns.system), ("user", turns.user), ("assistant", turns.assistant))
        )
    ]
    return f"{{{{ range .Messages }}}}{''.join(cases)}{{{{ end }}}}{{{{ end }}}}{turns.begins_answer}"


def _prompt_template(tokenizer: PreTrainedTokenizerBase, format: Mapping[str, Any] | None) -> str | None:
    """The words of a data format around a question; None where it has no place for one."""
    if format is None:
        return "{{ .Prompt }}"
    try:
        (row,) = prompts.rows_of_texts([_FIRST], "", format)
        (prompt,) = prompts.of_rows([row], format, tokenizer)
    except UserError:
        return None
    return prompt.text.replace(_FIRST, "{{ .Prompt }}") if prompt.text.count(_FIRST) == 1 else None
