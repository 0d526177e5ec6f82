"""A GGUF file is compared with training as llama.cpp serves it, and without llama.cpp by its own data."""

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fmstune.config import freeze
from fmstune.config.requests import GgufType, Merge
from fmstune.errors import UserError
from fmstune.models import merge
from fmstune.serving.llama_cpp.gguf_file import write_gguf
from fmstune.serving.llama_cpp.vocabulary import Vocabulary, read_vocabulary
from fmstune.serving.parity import prove
from tests.conftest import Result

OTHER = "{% for m in messages %}{{ '[' + m['role'] + '] ' + m['content'] + '\n' }}{% endfor %}"
Write = Callable[..., Path]
with_llama_cpp = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None, reason="make llama-cpp builds llama.cpp"
)
pytestmark = pytest.mark.slow


class Parts:
    """What a file is written of, each part to be changed."""

    def __init__(self, run: Path) -> None:
        asked = merge.check_merge(Merge(model=(str(run / "model"),), out="out"))
        self.tokenizer: PreTrainedTokenizerBase = asked.tokenizers[0]
        self.format = freeze.read(run / "job.yaml").job.data.format
        self.base = merge.tuned.whole(
            asked.places[0], merge.Tokenizer(self.tokenizer), dtype="float32", attention="sdpa"
        )
        merge.tuned.grow(self.base, merge.Tokenizer(self.tokenizer))
        _, self.model = merge.merge_adapters(asked)

    def write(
        self,
        path: Path,
        *,
        model: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        kind: GgufType = GgufType.f16,
        change: Callable[[Vocabulary], Vocabulary] = lambda same: same,
    ) -> Path:
        tokenizer, model = tokenizer or self.tokenizer, model or self.model
        rows = model.get_input_embeddings().weight.shape[0]
        write_gguf(model, tokenizer, change(read_vocabulary(tokenizer, rows, self.format)), path, kind)
        return path


@pytest.fixture(scope="module")
def parts() -> dict[Path, Parts]:
    return {}


@pytest.fixture
def write(run: Path, parts: dict[Path, Parts], tmp_path: Path) -> Write:
    """Write the file of the run on texts."""
    parts.setdefault(run, Parts(run))
    return lambda **changes: parts[run].write(tmp_path / "model.gguf", **changes)


@pytest.fixture
def write_chat(tuned: Path, parts: dict[Path, Parts], tmp_path: Path) -> Write:
    """Write the file of the run on conversations."""
    parts.setdefault(tuned, Parts(tuned))
    return lambda **changes: parts[tuned].write(tmp_path / "model.gguf", **changes)


@pytest.fixture
def no_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "llama_cpp" else whole(name, *more)
    )


def changed(tokenizer: PreTrainedTokenizerBase, **values: Any) -> PreTrainedTokenizerBase:
    """A copy of the tokenizer with other attributes."""
    other = copy.deepcopy(tokenizer)
    for name, value in values.items():
        setattr(other, name, value)
    return other


def fault(known: prove.Known, file: Path) -> str:
    with pytest.raises(UserError) as error:
        prove.prove_gguf(known, file)
    return str(error.value)


def with_bos(known: prove.Known) -> prove.Known:
    """The same rows, asked by a client that writes the first token into its text."""
    rows = [replace(row, prompt="<s>" + row.prompt) for row in known.chosen.rows]
    return replace(known, chosen=replace(known.chosen, rows=rows))


def unnamed(found: Vocabulary) -> Vocabulary:
    """The end-of-sequence under a name that tells nothing."""
    return found._replace(tokens=[*found.tokens[:2], "<two>", *found.tokens[3:]])


@with_llama_cpp
@pytest.mark.parametrize("kind", GgufType)
def test_a_sound_file_of_texts_passes(kind: GgufType, known: prove.Known, write: Write) -> None:
    said = prove.prove_gguf(known, write(kind=kind))
    assert said.startswith("parity: llama.cpp serves 6 held-out rows") and "nats" in said and "note" not in said


@with_llama_cpp
def test_a_sound_file_of_conversations_passes(known_chat: prove.Known, write_chat: Write) -> None:
    assert prove.prove_gguf(known_chat, write_chat()).startswith("parity: llama.cpp serves 6 training rows")


@with_llama_cpp
def test_planted_faults_of_a_file_of_texts_are_named(
    known: prove.Known, write: Write, run: Path, parts: dict[Path, Parts]
) -> None:
    own = parts[run]
    assert ": adapter not applied: " in fault(known, write(model=own.base))
    assert ": first token doubled: " in fault(with_bos(known), write())
    assert ": prompt cut: " in fault(known, write(change=lambda found: found._replace(begins=False)))
    # llama.cpp knows </s> by its name, too
    without = {"tokenizer": changed(own.tokenizer, eos_token="<unk>"), "change": unnamed}
    said = fault(known, write(**without))
    assert ": end token missing: " in said and "'</s>' (2), ends it in training, and serving goes on" in said


@with_llama_cpp
def test_planted_faults_of_a_file_of_conversations_are_named(
    known_chat: prove.Known, write_chat: Write, tuned: Path, parts: dict[Path, Parts]
) -> None:
    other = changed(parts[tuned].tokenizer, chat_template=OTHER)
    assert ": template: " in fault(known_chat, write_chat(tokenizer=other))
    # llama.cpp would put a space behind <|im_start|>
    said = fault(known_chat, write_chat(change=lambda found: found._replace(spaced=True)))
    assert ": template: " in said and "token 2 of the prompt is " in said
    # training begins with the template's own first token
    said = fault(known_chat, write_chat(change=lambda found: found._replace(begins=True)))
    assert ": template: " in said and "token 1 of the prompt is '<s>' (1)" in said


def test_without_llama_cpp_the_data_of_the_file_is_compared(
    no_llama_cpp: None, known: prove.Known, write: Write, run: Path, parts: dict[Path, Parts]
) -> None:
    said = prove.prove_gguf(known, write())
    assert said.startswith("parity: model.gguf has the prompts and the end tokens of 6 held-out rows as training had")
    assert "\nnote: llama.cpp is not installed here, so its tokens and answers were not compared" in said
    assert ": prompt cut: " in fault(known, write(change=lambda found: found._replace(begins=False)))
    assert ": end token missing: " in fault(known, write(tokenizer=changed(parts[run].tokenizer, eos_token="<unk>")))

    def swapped(found: Vocabulary) -> Vocabulary:
        return found._replace(tokens=[*found.tokens[:300], found.tokens[301], found.tokens[300], *found.tokens[302:]])

    said = fault(known, write(change=swapped))
    assert ": wrong base: model.gguf has other tokens: number 300 is " in said


def test_without_llama_cpp_the_template_of_the_file_is_compared(
    no_llama_cpp: None, known_chat: prove.Known, write_chat: Write, tuned: Path, parts: dict[Path, Parts]
) -> None:
    assert "has the prompts and the end tokens of 6 training rows" in prove.prove_gguf(known_chat, write_chat())
    other = changed(parts[tuned].tokenizer, chat_template=OTHER)
    assert ": template: " in fault(known_chat, write_chat(tokenizer=other))
    said = fault(known_chat, write_chat(change=lambda found: found._replace(spaced=True)))
    assert ": wrong base: model.gguf has other spaces: number 0 is True, False in training" in said
    bare = changed(parts[tuned].tokenizer, chat_template=None)
    assert fault(known_chat, write_chat(tokenizer=bare)).endswith(
        "template: model.gguf has no chat template; write it again"
    )


def test_the_commands_compare_a_file_that_they_write_or_are_given(run: Path, fmstune: Callable[..., Result]) -> None:
    done = fmstune("merge", "--model", str(run), "--export", "gguf", "--out", "out", "--parity_rows", "2")
    assert done.code == 0, done.err
    assert " 2 held-out rows" in done.out.splitlines()[2]
    done = fmstune("parity", str(run), "--gguf", "out/model-f16.gguf", "--rows", "2")
    assert done.code == 0, done.err
    assert " 2 held-out rows" in done.out
    Path("out/broken.gguf").write_bytes(b"GGUF")
    done = fmstune("parity", str(run), "--gguf", "out/broken.gguf")
    assert done.code == 2 and "--gguf: out/broken.gguf cannot be read as a GGUF file" in done.err
