"""Counts, module names and problems of an architecture, on the meta device."""

import copy
import warnings
from dataclasses import replace
from pathlib import Path

import fmstune.conf
import pytest
import torch
import yaml
from peft import (
    AdaptionPromptConfig,
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    ShiraConfig,
    get_peft_model,
)
from transformers import AutoConfig, AutoModelForCausalLM

from fmstune.config.job import Model, Quantization
from fmstune.errors import UserError
from fmstune.models import adapter_targets, shapes
from fmstune.models.adapter_targets import Target
from fmstune.models.architecture import build_empty, model_configuration

LLAMA_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "vocab_size": 32000,
}
LLAMA_13B = {
    **LLAMA_7B,
    "hidden_size": 5120,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "intermediate_size": 13824,
}
TINY_LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 88,
    "vocab_size": 100,
}
TIED_LLAMA = {**TINY_LLAMA, "tie_word_embeddings": True}
BIGCODE = {
    "model_type": "gpt_bigcode",
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "vocab_size": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {**BIGCODE, "model_type": "gpt2"}


def lora(**fields):
    return LoraConfig(task_type="CAUSAL_LM", **fields)


def prompt(**fields):
    return PromptTuningConfig(task_type="CAUSAL_LM", **fields)


def config_of(architecture):
    return model_configuration(Model(path="some/model", architecture=architecture))


def model_of(architecture):
    return build_empty(config_of(architecture))


COUNTS = [
    (LLAMA_7B, None, 6_738_415_616, 0),
    (LLAMA_13B, None, 13_015_864_320, 0),
    (LLAMA_7B, lora(r=8, target_modules=["q_proj", "v_proj"]), 6_738_415_616, 4_194_304),
    (LLAMA_13B, lora(r=8, target_modules=["q_proj", "v_proj"]), 13_015_864_320, 6_553_600),
    (LLAMA_7B, prompt(num_virtual_tokens=8), 6_738_415_616, 32_768),
    (BIGCODE, None, 128_576, 0),
    (BIGCODE, lora(r=8, target_modules=["c_attn"]), 128_576, 2_560),
]


def shipped(name):
    file = Path(next(iter(fmstune.conf.__path__))) / "model" / f"{name}.yaml"
    return yaml.safe_load(file.read_text(encoding="utf-8"))


SHIPPED = [
    # the papers say 15.5B (arXiv:2305.06161) and 1.1B (arXiv:2301.03988)
    ("gpt_bigcode", 15_517_456_384, 6144, 40, 48, 24576, 49152, 8192),
    ("santacoder", 1_124_886_528, 2048, 24, 16, 8192, 49280, 2048),
]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("name", "base", "hidden", "layers", "heads", "inner", "vocabulary", "positions"), SHIPPED)
def test_the_shipped_gpt_bigcodes_have_the_sizes_of_their_papers(
    name, base, hidden, layers, heads, inner, vocabulary, positions
):
    file = shipped(name)
    d = shapes.dimensions(build_empty(config_of(file["architecture"])), lora(r=8, target_modules=file["lora_targets"]))
    assert d.base_parameters == base
    assert (d.hidden_size, d.layers, d.heads, d.kv_heads, d.head_dim) == (hidden, layers, heads, 1, 128)
    assert (d.intermediate_size, d.vocabulary, d.max_positions) == (inner, vocabulary, positions)
    assert (d.tied, d.dropout, d.rms_norm, d.mlp_kept) == (True, True, False, 1)
    assert d.adapter_parameters == layers * 8 * (hidden + hidden + 2 * 128)
    blocks = {type(module).__name__ for module in model_of(file["architecture"]).modules()}
    assert file["layer_cls"] in blocks


# q, k, v, o, gate, up and down of two layers
LINEARS = 2 * (32 * 32 + 16 * 32 + 16 * 32 + 32 * 32 + 3 * 32 * 88)


@pytest.mark.parametrize(
    ("fields", "held"),
    [
        ({"load_in_4bit": True}, LINEARS // 2 + LINEARS // 64 * 4),
        ({"load_in_8bit": True}, LINEARS + 4 * 2 * (32 + 16 + 16 + 32 + 88 + 88 + 32)),
    ],
)
def test_the_linear_layers_but_the_output_layer_are_quantised(fields, held):
    d = shapes.dimensions(build_empty(config_of(TINY_LLAMA)), lora(r=2), Quantization(**fields))
    assert (d.quantised_parameters, d.quantised_bytes) == (LINEARS, held)
    assert d.base_parameters == shapes.dimensions(build_empty(config_of(TINY_LLAMA)), lora(r=2)).base_parameters


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("architecture", "peft_config", "base", "adapter"), COUNTS)
def test_the_parameters_of_known_models_are_exact(architecture, peft_config, base, adapter):
    d = shapes.dimensions(build_empty(config_of(architecture)), peft_config)
    assert (d.base_parameters, d.adapter_parameters) == (base, adapter)
    assert d.trainable_parameters == (adapter or base)


ADAPTERS = [
    None,
    lora(r=4),
    lora(r=4, target_modules="all-linear", lora_dropout=0.1),
    lora(r=4, target_modules="all-linear", bias="all"),
    lora(r=2, modules_to_save=["lm_head"]),
    lora(r=4, use_dora=True),
    prompt(num_virtual_tokens=5),
    PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=5, encoder_hidden_size=16),
    IA3Config(task_type="CAUSAL_LM"),
    LNTuningConfig(task_type="CAUSAL_LM", target_modules=r".*(norm|ln_.)"),
    PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
]


@pytest.mark.sampled(3)
@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize(
    "architecture", [TINY_LLAMA, TIED_LLAMA, BIGCODE, GPT2], ids=["llama", "tied", "bigcode", "gpt2"]
)
@pytest.mark.parametrize("peft_config", ADAPTERS, ids=range(len(ADAPTERS)))
def test_the_parameters_equal_those_of_a_model_really_built(architecture, peft_config):
    d = shapes.dimensions(build_empty(config_of(architecture)), peft_config)
    real = AutoModelForCausalLM.from_config(config_of(architecture))
    if peft_config is not None:
        real = get_peft_model(real, copy.deepcopy(peft_config))
    every = sum(p.numel() for p in real.parameters())
    trained = sum(p.numel() for p in real.parameters() if p.requires_grad)
    assert (d.base_parameters + d.adapter_parameters, d.trainable_parameters) == (every, trained)


@pytest.mark.parametrize("init", ["pissa", "olora", "gaussian"])
def test_an_initialisation_that_reads_weights_is_not_run_to_count(init):
    assert (
        shapes.dimensions(build_empty(config_of(TINY_LLAMA)), lora(r=4, init_lora_weights=init)).adapter_parameters
        == 896
    )


def test_a_text_prompt_is_counted_without_its_tokenizer():
    text = prompt(
        num_virtual_tokens=8,
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text="Is it a complaint?",
        tokenizer_name_or_path="/there/is/none",
    )
    d = shapes.dimensions(build_empty(config_of(TINY_LLAMA)), text)
    assert (d.adapter_parameters, d.virtual_tokens) == (256, 8)
    assert text.prompt_tuning_init == "TEXT"


def test_the_dimensions_of_a_llama():
    d = shapes.dimensions(build_empty(config_of(TINY_LLAMA)), None)
    assert (d.hidden_size, d.layers, d.heads, d.kv_heads, d.head_dim, d.intermediate_size) == (32, 2, 4, 2, 8, 88)
    assert (d.vocabulary, d.tied, d.max_positions) == (100, False, 2048)
    assert (d.mlp_kept, d.rms_norm, d.dropout, d.adapter_dropout) == (3, True, False, False)
    assert (d.linear_inputs, d.linear_inputs_each) == (2 * (32 + 32 + 88), 2 * (4 * 32 + 2 * 32 + 88))


def test_the_dimensions_of_a_gpt_bigcode():
    d = shapes.dimensions(build_empty(config_of(BIGCODE)), lora(r=8, target_modules=["c_attn"], lora_dropout=0.1))
    assert (d.hidden_size, d.layers, d.heads, d.kv_heads, d.head_dim, d.intermediate_size) == (64, 2, 4, 1, 16, 256)
    assert (d.vocabulary, d.tied, d.max_positions) == (512, True, 128)
    assert (d.mlp_kept, d.rms_norm, d.dropout, d.adapter_dropout) == (1, False, True, True)
    assert (d.linear_inputs, d.linear_inputs_each) == (128, 128)


def test_of_a_width_for_each_layer_the_largest_counts() -> None:
    config = AutoConfig.for_model(
        "gemma3n_text", vocab_size=64, hidden_size=32, intermediate_size=[64, 96], num_hidden_layers=2
    )
    assert shapes._mlp_width(config, None) == 96


def test_gpt2_keeps_more_for_its_activation_written_in_python():
    assert shapes.dimensions(build_empty(config_of(GPT2)), None).mlp_kept == 4


def test_the_empty_model_has_no_memory():
    assert {p.device for p in model_of(LLAMA_7B).parameters()} == {torch.device("meta")}


# configuration


def test_the_targets_of_a_llama():
    assert adapter_targets.targets(model_of(LLAMA_7B)) == [
        Target("q_proj", "Linear", 32, 4096, 4096),
        Target("k_proj", "Linear", 32, 4096, 4096),
        Target("v_proj", "Linear", 32, 4096, 4096),
        Target("o_proj", "Linear", 32, 4096, 4096),
        Target("gate_proj", "Linear", 32, 4096, 11008),
        Target("up_proj", "Linear", 32, 4096, 11008),
        Target("down_proj", "Linear", 32, 11008, 4096),
    ]


def test_a_name_with_two_shapes_is_told_apart_by_its_parent():
    assert adapter_targets.targets(model_of(GPT2)) == [
        Target("c_attn", "Conv1D", 2, 64, 192),
        Target("attn.c_proj", "Conv1D", 2, 64, 64),
        Target("c_fc", "Conv1D", 2, 64, 256),
        Target("mlp.c_proj", "Conv1D", 2, 256, 64),
    ]


def test_bigcode_has_linear_layers_under_the_same_names():
    assert adapter_targets.targets(model_of(BIGCODE))[0] == Target("c_attn", "Linear", 2, 64, 96)


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize("architecture", [TINY_LLAMA, BIGCODE, GPT2])
def test_lora_on_all_targets_is_all_linear(architecture):
    model = model_of(architecture)
    expected = shapes.dimensions(build_empty(model.config), lora(r=8, target_modules="all-linear")).adapter_parameters
    assert sum(target.lora_parameters(8) for target in adapter_targets.targets(model)) == expected


TARGET_PROBLEMS = [
    (
        ["q_proj", "kq_proj"],
        "no module is named 'kq_proj'; did you mean 'q_proj'?; available are q_proj, k_proj, v_proj",
    ),
    (["all-linear"], "all-linear works as a string, not in a list; write it without brackets"),
    (["lm_head"], "'lm_head' matches the output layer"),
    (["self_attn"], "'self_attn' matches LlamaAttention, without a weight of its own to adapt"),
    ("q_proj", "'q_proj' matches no module (a string is a regular expression for the whole name"),
    (r".*(q_proj|lm_head)", "matches the output layer"),
    ("*_proj", "'*_proj' is not a regular expression: nothing to repeat"),
]


@pytest.mark.parametrize(("asked", "message"), TARGET_PROBLEMS)
def test_a_target_that_cannot_be_adapted_is_a_problem(asked, message):
    (problem,) = map(str, adapter_targets.target_problems(model_of(TINY_LLAMA), lora(target_modules=asked)))
    assert problem.startswith("peft.target_modules: ")
    assert message in problem


def test_every_unknown_target_is_named():
    problems = list(
        map(str, adapter_targets.target_problems(model_of(TINY_LLAMA), lora(target_modules=["aa", "q_proj", "bb"])))
    )
    assert [problem.partition(";")[0] for problem in problems] == [
        "peft.target_modules: no module is named 'aa'",
        "peft.target_modules: no module is named 'bb'",
    ]


@pytest.mark.parametrize(
    "asked",
    [
        None,
        "all-linear",
        r".*\.q_proj",
        ["q_proj"],
        ["self_attn.q_proj"],
        ["model.layers.0.mlp.up_proj"],
        ["embed_tokens"],
    ],
)
def test_a_target_that_exists_is_no_problem(asked):
    assert list(adapter_targets.target_problems(model_of(TINY_LLAMA), lora(target_modules=asked))) == []


def test_an_architecture_without_a_default_of_peft_needs_targets():
    model = model_of(TINY_LLAMA)
    model.config.model_type = "unheard_of"
    (problem,) = map(str, adapter_targets.target_problems(model, lora()))
    assert "PEFT has no default for unheard_of; set it to all-linear or to some of q_proj, k_proj" in problem


def ia3(**fields):
    return IA3Config(task_type="CAUSAL_LM", **fields)


def test_an_architecture_without_a_default_for_ia3_needs_both_of_its_lists():
    model = model_of(TINY_LLAMA)
    model.config.model_type = "unheard_of"
    targets, feedforward = map(str, adapter_targets.target_problems(model, ia3()))
    assert "PEFT has no default for unheard_of; set it to some of q_proj, k_proj" in targets
    assert feedforward.startswith("peft.feedforward_modules: PEFT has no default for unheard_of; name the modules of")
    asked = ia3(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    assert list(adapter_targets.target_problems(model, asked)) == []


def test_a_feedforward_module_that_does_not_exist_is_a_problem():
    (problem,) = map(str, adapter_targets.target_problems(model_of(TINY_LLAMA), ia3(feedforward_modules=["down"])))
    assert problem.startswith("peft.feedforward_modules: no module is named 'down'; available are q_proj")


def test_a_module_to_save_that_does_not_exist_is_a_problem():
    (problem,) = map(
        str, adapter_targets.target_problems(model_of(TINY_LLAMA), lora(modules_to_save=["lm_head", "score"]))
    )
    assert problem == "peft.modules_to_save: no module is named 'score'"


def test_prompt_tuning_has_no_targets_to_check():
    assert list(adapter_targets.target_problems(model_of(TINY_LLAMA), prompt(num_virtual_tokens=2))) == []


def test_counting_raises_the_problems_at_once():
    with pytest.raises(UserError) as error:
        shapes.dimensions(build_empty(config_of(TINY_LLAMA)), lora(target_modules=["aa", "bb"]))
    assert len(tuple(map(str, error.value.problems))) == 2


def test_what_peft_itself_refuses_is_the_user_s_error():
    with pytest.raises(
        UserError,
        match="peft: LoraConfig refuses these fields: `r` should be a positive integer value but the value passed is 0",
    ):
        shapes.dimensions(build_empty(config_of(TINY_LLAMA)), lora(r=0))


def test_a_method_that_needs_weights_to_be_built_says_so():
    with pytest.raises(UserError, match="peft: ShiraConfig cannot be checked without the weights .*; choose another"):
        shapes.dimensions(
            build_empty(config_of(TINY_LLAMA)), ShiraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
        )


def test_a_prompt_that_fits_another_model_is_a_problem_and_the_model_s_own_values_are_none():
    fitting = prompt(num_virtual_tokens=2, token_dim=32, num_layers=2, num_transformer_submodules=1)
    assert shapes.dimensions(build_empty(config_of(TINY_LLAMA)), fitting).adapter_parameters == 64
    with pytest.raises(UserError) as error:
        shapes.dimensions(build_empty(config_of(TINY_LLAMA)), prompt(num_virtual_tokens=2, token_dim=7, num_layers=3))
    assert tuple(map(str, error.value.problems)) == (
        "peft.token_dim is 7, and the model has 32; leave it out",
        "peft.num_layers is 3, and the model has 2; leave it out",
    )


@pytest.mark.parametrize("method", [PrefixTuningConfig, PromptEncoderConfig])
@pytest.mark.parametrize("model_type", ["falcon", "mamba", "llama", "gpt_neox"])
def test_a_prefix_that_does_not_fit_the_cache_is_a_problem_and_virtual_tokens_fit_all(method, model_type):
    config = AutoConfig.for_model(
        model_type, vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    if method is PrefixTuningConfig and model_type in ("falcon", "mamba"):
        with pytest.raises(UserError, match=rf"do not fit the cache of {model_type}; choose another method"):
            shapes.dimensions(build_empty(config), method(task_type="CAUSAL_LM", num_virtual_tokens=4))
    else:
        assert (
            shapes.dimensions(build_empty(config), method(task_type="CAUSAL_LM", num_virtual_tokens=4)).virtual_tokens
            == 4
        )


@pytest.mark.parametrize("key", ["q_proj", "layers.0.self_attn.q_proj", r".*\.1\..*q_proj"])
def test_a_rank_of_an_adapted_module_is_no_problem(key):
    counted = shapes.dimensions(
        build_empty(config_of(TINY_LLAMA)), lora(r=4, target_modules=["q_proj"], rank_pattern={key: 8})
    )
    assert counted.adapter_parameters > 2 * 4 * 64


def test_a_rank_or_scale_of_a_module_that_is_not_adapted_is_a_problem():
    asked = lora(target_modules=["q_proj"], rank_pattern={"k_proj": 8, "q_proj": 8}, alpha_pattern={"q": 8})
    with pytest.raises(UserError) as error:
        shapes.dimensions(build_empty(config_of(TINY_LLAMA)), asked)
    assert tuple(map(str, error.value.problems)) == (
        "peft.rank_pattern: 'k_proj' matches no module that is adapted; see peft.target_modules",
        "peft.alpha_pattern: 'q' matches no module that is adapted; see peft.target_modules",
    )


def test_counting_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shapes.dimensions(build_empty(config_of(GPT2)), lora(target_modules=["c_attn"], modules_to_save=["lm_head"]))


def test_the_modules_are_a_table():
    assert adapter_targets.render_modules(model_of(TINY_LLAMA)).splitlines() == [
        "  module                  kind     count      in     out      LoRA r=8",
        "* q_proj                  Linear       2      32      32         1,024",
        "  k_proj                  Linear       2      32      16           768",
        "* v_proj                  Linear       2      32      16           768",
        "  o_proj                  Linear       2      32      32         1,024",
        "  gate_proj               Linear       2      32      88         1,920",
        "  up_proj                 Linear       2      32      88         1,920",
        "  down_proj               Linear       2      88      32         1,920",
        "* llama's default, taken where peft.target_modules is null",
        "peft.target_modules=all-linear takes all of these (14 modules, 9,344 parameters with r=8), "
        "without the output layer",
    ]


@pytest.mark.parametrize(("default", "marked"), [(["o_proj"], 1), ("all-linear", 7), (["q_proj", "up_proj"], 2)])
def test_the_job_s_own_targets_are_marked_when_it_names_them(default, marked):
    lines = adapter_targets.render_modules(model_of(TINY_LLAMA), default).splitlines()
    assert sum(line.startswith("* ") for line in lines) == marked + 1


def test_a_model_on_the_meta_device_is_counted_alike_under_lora_and_full():
    full = shapes.dimensions(build_empty(config_of(TINY_LLAMA)), None)
    adapted = shapes.dimensions(build_empty(config_of(TINY_LLAMA)), lora(r=2))
    same = replace(adapted, adapter_parameters=0, trainable_parameters=full.trainable_parameters)
    inputs = {"linear_inputs": full.linear_inputs, "linear_inputs_each": full.linear_inputs_each}
    assert replace(same, **inputs, flops=full.flops) == full


def test_a_value_that_a_method_misses_is_named():
    config = AdaptionPromptConfig(task_type="CAUSAL_LM")
    with pytest.raises(UserError, match=r"AdaptionPromptConfig misses a value: one of .*peft.adapter_layers.*; set it"):
        shapes.attach(build_empty(model_configuration(Model(path="x", architecture=TINY_LLAMA))), config)


@pytest.mark.parametrize("model_type", ["mamba", "rwkv"])
def test_a_model_without_attention_has_no_heads(model_type):
    config = {"model_type": model_type, "hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 320}
    assert shapes.dimensions(build_empty(config_of(config)), None).heads == 0
