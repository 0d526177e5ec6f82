"""A small model that was tuned on a conversation, and what `fmstune generate` answers with it."""

import json
import os
from pathlib import Path

import pytest

from tests.conftest import MadeOnce
from tests.fixtures import forked

TOKENS = 12
QUESTIONS = [f"Parcel {number} came late and the box was open" for number in range(20)]
TUNE = (
    "peft=lora",
    "model.chat_template=package:chatml.jinja",
    # an end of turns that the base does not end with
    "model.special_tokens={extra_special_tokens: ['<|im_start|>', '<|im_end|>']}",
    "data=chat",
    "data.train=rows.jsonl",
    "training.max_steps=12",
    "training.learning_rate=1e-2",
    "training.save_strategy=no",
    "evaluation=none",
    "output_dir=run",
)


@pytest.fixture(scope="session")
def tuned(made_once: MadeOnce) -> Path:
    """The run of a small chat model, and what `fmstune generate` answers with it: `answers.json`, `texts.json`."""

    def tune(place: Path) -> None:
        said = [
            {"messages": [{"role": "user", "content": one}, {"role": "assistant", "content": "We are sorry."}]}
            for one in QUESTIONS
        ]
        (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
        (place / "questions.txt").write_text("\n".join(QUESTIONS))
        ask = ["generate", "--model", "run", "--text_file", "questions.txt", "--only_new_text"]
        ask += ["--max_new_tokens", str(TOKENS)]
        for words in (TUNE, [*ask, "--format=chat", "--out_file=answers.json"], [*ask, "--out_file=texts.json"]):
            done = forked.run([forked.SCRIPT, *words], {**os.environ, "PWD": str(place)})
            assert done.returncode == 0, done.stderr

    with pytest.MonkeyPatch.context() as patch:
        place = made_once("served_run", lambda folder: (patch.chdir(folder), tune(folder)))
    return place / "run"


def generated(run: Path, file: str) -> dict[str, str]:
    """What `fmstune generate` has answered to each question."""
    made = json.loads((run.parent / file).read_text())
    return dict(zip(QUESTIONS, (one["output"] for one in made), strict=True))
