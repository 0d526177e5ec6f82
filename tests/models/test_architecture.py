"""The configuration of a model: where it comes from, and what is refused before any weight is read."""

import json

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from fmstune.config.job import Model
from fmstune.errors import UserError
from fmstune.models.architecture import build_empty, forward_problems, model_configuration
from tests.models.test_shapes import BIGCODE, TINY_LLAMA, config_of, model_of


def test_a_folder_is_read(tmp_path):
    AutoConfig.for_model(**TINY_LLAMA).save_pretrained(tmp_path)
    config = model_configuration(Model(path=str(tmp_path), architecture=TINY_LLAMA))
    assert (config.model_type, config.hidden_size) == ("llama", 32)


def test_every_disagreement_between_folder_and_architecture_is_named(tmp_path):
    AutoConfig.for_model(**TINY_LLAMA, rope_theta=500.0).save_pretrained(tmp_path)
    other = {**TINY_LLAMA, "hidden_size": 64, "vocab_size": 99, "rope_theta": 500.0}
    with pytest.raises(UserError) as error:
        model_configuration(Model(path=str(tmp_path), architecture=other))
    assert tuple(map(str, error.value.problems)) == (
        f"model.architecture.hidden_size is 64, but {tmp_path} has 32; correct it",
        f"model.architecture.vocab_size is 99, but {tmp_path} has 100; correct it",
    )


def test_the_values_of_a_part_are_compared_and_those_left_out_are_not(tmp_path):
    text = {"hidden_size": 32, "num_hidden_layers": 2}
    AutoConfig.for_model("gemma3", text_config={**text, "head_dim": 8}).save_pretrained(tmp_path)
    model_configuration(Model(path=str(tmp_path), architecture={"model_type": "gemma3", "text_config": text}))
    other = {"model_type": "gemma3", "text_config": {**text, "hidden_size": 64}}
    with pytest.raises(
        UserError, match=r"^model\.architecture\.text_config\.hidden_size is 64, but .* has 32; correct"
    ):
        model_configuration(Model(path=str(tmp_path), architecture=other))


def test_an_architecture_is_compared_with_the_configuration_in_the_hubs_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    model = Model(path="owner/name", revision="abc", architecture={**TINY_LLAMA, "hidden_size": 64})
    assert model_configuration(model).hidden_size == 64
    folder = tmp_path / "models--owner--name" / "snapshots" / "abc"
    AutoConfig.for_model(**TINY_LLAMA).save_pretrained(folder)
    with pytest.raises(UserError, match=r"^model\.architecture\.hidden_size is 64, but owner/name has 32; correct it$"):
        model_configuration(model)


def test_an_alias_of_the_architecture_is_compared_too(tmp_path):
    AutoConfig.for_model(**BIGCODE).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"model\.architecture\.num_hidden_layers is 3, but .* has 2"):
        model_configuration(
            Model(path=str(tmp_path), architecture={"model_type": "gpt_bigcode", "num_hidden_layers": 3})
        )


ARCHITECTURES = [
    ({"hidden_size": 64}, "model.architecture: model_type is missing; add the transformers name, such as llama"),
    ({"model_type": "lama"}, "transformers knows no 'lama'; did you mean 'llama'?"),
    ({"model_type": "llama", "hiden_size": 64}, "model.architecture.hiden_size: llama has no such value; did you mean"),
    ({"model_type": "llama", "hidden_size": "big"}, "Field 'hidden_size' expected int, got str (value: 'big')"),
    ({"model_type": "t5"}, "(t5) is not a causal language model"),
    ({"model_type": "mistral3"}, "holds a mistral3, a model of pictures that transformers loads as no causal language"),
    (
        {"model_type": "gemma3", "text_config": {"hiden_size": 64}},
        "model.architecture.text_config.hiden_size: gemma3_text has no such value; did you mean 'hidden_size'?",
    ),
    (
        {"model_type": "bert", "architectures": ["BertForMaskedLM"]},
        "holds a BertForMaskedLM, but tuning needs a BertLM",
    ),
    ({"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}, "needs a LlamaForCausalLM"),
]


@pytest.mark.parametrize(("architecture", "message"), ARCHITECTURES)
def test_an_architecture_that_cannot_be_tuned_is_refused(architecture, message):
    with pytest.raises(UserError) as error:
        config_of(architecture)
    (problem,) = tuple(map(str, error.value.problems))
    assert message in problem


FOLDERS = [
    (None, "has no config.json; give the folder that save_pretrained wrote"),
    ("{", "config.json is not JSON"),
    ('{"hidden_size": 4}', "names no model_type"),
    ('{"model_type": "lama"}', "unknown to this transformers; did you mean 'llama'?"),
    ('{"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}', "needs code of its own (mine.Config)"),
    (
        '{"model_type": "gpt2", "architectures": ["GPT2LMHeadCustomModel"], "auto_map": {"AutoConfig": "m.C"}}',
        "needs code of its own (m.C), and fmstune runs none from a model",
    ),
]


@pytest.mark.parametrize(("text", "message"), FOLDERS)
def test_a_folder_that_cannot_be_loaded_is_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError) as error:
        model_configuration(Model(path=str(tmp_path)))
    (problem,) = tuple(map(str, error.value.problems))
    assert message in problem


def test_code_beside_an_architecture_of_transformers_is_left_alone(tmp_path):
    AutoConfig.for_model(**TINY_LLAMA, architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values["auto_map"] = {"AutoConfig": "mine.Config"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert model_configuration(Model(path=str(tmp_path))).hidden_size == 32


def test_a_missing_folder_is_not_looked_for_on_the_hub():
    with pytest.raises(UserError, match=r"model\.path: no folder /nowhere/model"):
        model_configuration(Model(path="/nowhere/model"))


def test_what_is_neither_a_folder_nor_a_hub_id_is_refused():
    with pytest.raises(UserError, match=r"a/b/c is neither a folder nor a hub id"):
        model_configuration(Model(path="a/b/c"))


def test_without_the_hub_an_architecture_is_advised(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"cache nor can the hub be reached; give a folder, or model\.architecture"):
        model_configuration(Model(path="nobody/nothing-of-the-kind"))


def hub_error(kind):
    """As transformers raises it: an OSError whose cause is the hub's own error."""
    error = OSError("long text of transformers")
    error.__cause__ = kind.__new__(kind)
    return error


HUB = [
    (GatedRepoError, "x/y is gated; accept its terms at https://huggingface.co/x/y and log in with `hf auth login`"),
    (RepositoryNotFoundError, "neither a folder nor a hub model is named x/y; if private, `hf auth login` first"),
    (RevisionNotFoundError, "model.revision: x/y has no revision 'v9'"),
    (HfHubHTTPError, "can the hub be reached"),
]


@pytest.mark.parametrize(("kind", "message"), HUB)
def test_each_refusal_of_the_hub_has_its_own_message(monkeypatch, kind, message):
    def refuse(*_, **__):
        raise hub_error(kind)

    monkeypatch.setattr(PreTrainedConfig, "get_config_dict", refuse)
    with pytest.raises(UserError) as error:
        model_configuration(Model(path="x/y", revision="v9"))
    (problem,) = tuple(map(str, error.value.problems))
    assert message in problem


# targets


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("[]", "holds a list; a configuration is a JSON object"),
        (json.dumps({**TINY_LLAMA, "num_attention_heads": 3}), "has values that transformers refuses"),
        (json.dumps({**TINY_LLAMA, "hidden_size": "x"}), "has values that transformers refuses"),
    ],
)
def test_values_that_fit_no_configuration_are_the_users_error(tmp_path, values, message):
    (tmp_path / "config.json").write_text(values)
    with pytest.raises(UserError, match=message):
        model_configuration(Model(path=str(tmp_path)))


SIZES = [
    ({"hidden_size": 0}, "hidden_size must be at least 1, got 0"),
    ({"num_attention_heads": 0}, "num_attention_heads must be at least 1, got 0"),
    ({"num_key_value_heads": -2}, "num_key_value_heads must be at least 1, got -2"),
    ({"vocab_size": 0}, "vocab_size must be at least 1, got 0"),
    ({"num_hidden_layers": 0}, "num_hidden_layers must be at least 1, got 0"),
    ({"intermediate_size": 0}, "intermediate_size must be at least 1, got 0"),
    ({"rope_parameters": {"rope_type": "yarm", "factor": 2.0}}, "rope_parameters.rope_type must be one of default, "),
    ({"rope_parameters": {"rope_type": "linear", "factor": "x"}}, "rope_parameters.factor must be a number above 0"),
    ({"rope_parameters": {"rope_type": "linear", "factor": -1}}, "rope_parameters.factor must be a number above 0"),
    ({"rope_parameters": {"rope_theta": 0}}, "rope_parameters.rope_theta must be a number above 0, got 0"),
    ({"rope_theta": -1.0}, "rope_parameters.rope_theta must be a number above 0, got -1.0"),
    ({"rope_scaling": {"type": "linear", "factor": 0}}, "rope_parameters.factor must be a number above 0, got 0"),
    ({"rope_parameters": {"rope_type": "llama3"}}, "Missing required keys in `rope_parameters`"),
    ({"rope_parameters": "default"}, "rope_parameters"),
    ({"rope_parameters": [1]}, "rope_parameters"),
    ({"hidden_size": "big"}, "hidden_size"),
    ({"num_attention_heads": 5}, "hidden"),
    ({"num_hidden_layers": 10**7}, "num_hidden_layers is 10,000,000, and no model has more than 10,000 blocks"),
]


@pytest.mark.parametrize(("values", "message"), SIZES)
def test_a_folder_whose_sizes_make_no_model_is_refused_with_the_field(tmp_path, values, message):
    (tmp_path / "config.json").write_text(json.dumps({**TINY_LLAMA, **values}))
    with pytest.raises(UserError) as error:
        build_empty(model_configuration(Model(path=str(tmp_path))))
    (problem,) = map(str, error.value.problems)
    assert problem.startswith(f"model.path: {tmp_path}/config.json")
    assert message in problem


@pytest.mark.parametrize(("values", "message"), SIZES)
def test_an_architecture_whose_sizes_make_no_model_is_refused_with_the_field(values, message):
    with pytest.raises(UserError) as error:
        build_empty(config_of({**TINY_LLAMA, **values}))
    (problem,) = map(str, error.value.problems)
    assert problem.startswith("model.architecture")
    assert message in problem


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rope_parameters": {}}, "rope_parameters is empty; it must hold rope_type and rope_theta"),
        ({"model_type": 3}, "model_type must be text, such as llama, got 3"),
        ({"model_type": []}, "model_type must be text, such as llama, got []"),
        ({"architectures": [1]}, "architectures must be a list of text, such as [LlamaForCausalLM], got [1]"),
        ({"architectures": "LlamaForCausalLM"}, "architectures must be a list of text"),
        ({"dtype": "float99"}, "AttributeError"),
        ({"hidden_act": None}, "Field 'hidden_act' expected str"),
        ({"layer_types": ["x"]}, "entries must be in"),
        ({"eos_token_id": "x"}, "Field 'eos_token_id'"),
    ],
)
def test_a_folder_whose_words_name_nothing_is_refused(tmp_path, values, message):
    (tmp_path / "config.json").write_text(json.dumps({**TINY_LLAMA, **values}))
    with pytest.raises(UserError) as error:
        build_empty(model_configuration(Model(path=str(tmp_path))))
    (problem,) = map(str, error.value.problems)
    assert message in problem


def test_a_word_that_is_looked_up_in_vain_is_named_with_its_field():
    with pytest.raises(UserError, match="makes no llama model: hidden_act='nope' is unknown"):
        build_empty(config_of({**TINY_LLAMA, "hidden_act": "nope"}))


def test_all_sizes_are_named_at_once_by_their_own_names():
    with pytest.raises(UserError) as error:
        config_of({**BIGCODE, "n_embd": 0, "n_head": 0})
    assert list(map(str, error.value.problems)) == [
        "model.architecture.n_embd must be at least 1, got 0",
        "model.architecture.n_head must be at least 1, got 0",
    ]


def test_sizes_without_a_number_in_a_weight_are_refused():
    with pytest.raises(UserError, match=r"makes a mixtral model without a number in model\.layers\.0\.mlp"):
        build_empty(config_of({**TINY_LLAMA, "model_type": "mixtral", "num_local_experts": 0}))


@pytest.mark.parametrize("values", [{"num_key_value_heads": 3}, {"head_dim": 3}, {"num_key_value_heads": 8}])
def test_sizes_that_do_not_fit_each_other_are_found_by_a_pass_without_numbers(values):
    (problem,) = map(str, forward_problems(model_of({**TINY_LLAMA, **values})))
    assert problem.startswith("model: the sizes in the configuration of this llama do not fit each other: ")


@pytest.mark.parametrize("architecture", [TINY_LLAMA, BIGCODE])
def test_sizes_that_fit_each_other_have_no_problem(architecture):
    assert list(forward_problems(model_of(architecture))) == []


@pytest.mark.parametrize(
    ("kinds", "at_least"),
    [
        pytest.param(("bloom", "gpt2", "mamba", "opt"), 4, id="some", marks=pytest.mark.slow),
        pytest.param(tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES), 150, id="all", marks=pytest.mark.soak),
    ],
)
def test_no_architecture_of_transformers_is_refused_for_its_own_sizes(kinds, at_least):
    """Mamba multiplies by a mask, and OPT and BLOOM count positions in it: none takes the mask of the trial."""
    tried = []
    for kind in kinds:
        try:
            config = AutoConfig.for_model(kind)
            for name in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"):
                if getattr(config, name, None) and not getattr(config, "layer_types", None):
                    setattr(config, name, 4)
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config)
        except Exception:  # a class that needs more than its defaults
            continue
        assert list(forward_problems(model)) == [], kind
        tried.append(kind)
    assert len(tried) >= at_least


def test_values_that_make_no_model_are_the_users_error():
    with pytest.raises(UserError, match="the configuration makes no llama model"):
        build_empty(config_of({**TINY_LLAMA, "vocab_size": 10, "pad_token_id": 50}))
