"""The card beside the weights: the hub can read it, its code runs, and it names no folder of this machine."""

import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from fmstune.runs import model_card
from tests import small


def python_of(card: str) -> str:
    (found,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    return found


@pytest.mark.slow
def test_a_tuned_adapter_has_a_card_that_the_hub_can_read(
    recorded_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = (recorded_run / "model" / "README.md").read_text()
    card = ModelCard.load(recorded_run / "model" / "README.md")
    assert (card.data.base_model, card.data.library_name, card.data.license) == ("m", "peft", "apache-2.0")
    assert card.data.pipeline_tag == "text-generation"
    assert "lora" in card.data.tags
    assert str(tmp_path.parent) not in text
    assert re.search(r"\| `data.train` \| `rows.jsonl` \| 8 \| `[0-9a-f]{64}` \|", text)
    assert re.search(r"\| `model.safetensors` \| `[0-9a-f]{64}` \|", text)
    assert re.search(r"\| loss on the answer \| \d+\.\d{4} \| \d+\.\d{4} \|", text)
    assert "fmstune model=causal_lm model.path=m peft=lora" in text
    assert "transformers 5." in text

    exec(python_of(text).replace('folder = "."', 'folder = "first/model"'), {})
    assert capfd.readouterr().out


def test_a_merged_models_card_loads_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card_text = model_card.merge_card(
        "/elsewhere/base",
        [("run/model", 1.0), ("other", 0.5)],
        {},
        dtype="float32",
        difference="Alike.",
        versions={"x": "1"},
    )
    folder = small.save(tmp_path / "merged")
    (folder / "README.md").write_text(card_text)
    monkeypatch.chdir(folder)
    card = ModelCard.load("README.md")
    assert (card.data.base_model, card.data.base_model_relation) == ("base", "merge")
    assert "license" not in card.data.to_dict() or card.data.license is None
    assert "Fill in `license`" in card.text and "- `run/model`, weight 1\n- `other`, weight 0.5" in card.text
    exec(python_of(card.text), {})


@pytest.mark.parametrize(
    ("head", "found"),
    [
        ("---\nlicense: mit\n---\n# A", {"license": "mit"}),
        (
            "---\nlicense: other\nlicense_name: own\nlicense_link: LICENSE\ntags: [a]\n---\n",
            {"license": "other", "license_name": "own", "license_link": "LICENSE"},
        ),
        ("---\ntags: [a]\n---\n", {}),
        ("---\n- a\n---\n", {}),
        ("---\n: {\n---\n", {}),
        ("# No front matter\nlicense: mit", {}),
    ],
)
def test_the_licence_is_the_one_that_the_bases_card_names(head: str, found: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(head)
    assert model_card.read_licence(tmp_path) == found
    assert model_card.read_licence(tmp_path / "nowhere") == {}


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("owner/name", "owner/name"),
        ("package:tiny_llama", "tiny_llama"),
        ("/home/someone/models/base", "base"),
        ("runs/first/model", "first/model"),
    ],
)
def test_a_folder_is_called_by_its_last_name(place: str, name: str) -> None:
    assert model_card.short_name(place) == name
