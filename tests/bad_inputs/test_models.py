"""What fmstune says to models, quantization, backends and adapters that do not work."""

import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from tests import ROOT
from tests.bad_inputs.cases import ROW, Case, assert_answered, assert_says, case, write, wrong_inputs

pytestmark = pytest.mark.sampled(20)

TINY = ROOT / "src" / "fmstune" / "assets" / "tiny_llama"


NO_TENSORS = b"\x02\0\0\0\0\0\0\0{}"
"""A whole safetensors file without a tensor in it."""
QUERIES = "base_model.model.model.layers.0.self_attn.q_proj"
WEIGHTS = (TINY / "model.safetensors").read_bytes()
FEWER_ROWS = save({name: rows[:500] if "embed" in name else rows for name, rows in load(WEIGHTS).items()})
LLAMA_TARGETS = "available are q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"


def tiny_llama(**changes: Any) -> dict[str, str | bytes]:
    """The shipped model as a folder `m`, with values of its config.json changed or (None) taken out."""
    config = json.loads((TINY / "config.json").read_text()) | changes
    files: dict[str, str | bytes] = {f"m/{path.name}": path.read_bytes() for path in TINY.iterdir()}
    return files | {"m/config.json": json.dumps({key: value for key, value in config.items() if value is not None})}


def model_case(says: str, files: Mapping[str, str | bytes]) -> Case:
    """A model in the folder `m` that cannot be tuned."""
    return Case("model=causal_lm model.path=m", (says,), files)


def without(files: Mapping[str, str | bytes], *names: str) -> dict[str, str | bytes]:
    """The files but these."""
    return {name: content for name, content in files.items() if name not in names}


MODELS = [
    case("model=causal_lm model.path=./nowhere", "model.path: no folder nowhere, and './nowhere' is not a hub id …"),
    case("model=causal_lm model.path=/no/where", "model.path: no folder /no/where, and '/no/where' is not a hub id …"),
    case("model.path=package:tiny_lama", "model.path: package:tiny_lama: no such file …; did you mean 'tiny_llama'?"),
    case(
        "model=causal_lm model.path=rows.jsonl",
        "model.path: rows.jsonl is a file; give the folder that holds it",
        rows_jsonl=ROW,
    ),
    case(
        "model=causal_lm model.path=owner/name",
        "model.path: no folder is named owner/name, and it is neither in the hub's cache nor can the hub be reached "
        "(HF_HUB_OFFLINE is set); give model.path=DIR, …",
    ),
    case("model=llama2_7b", "model.path: no folder is named meta-llama/Llama-2-7b-hf, and it is neither …"),
    case(
        "model=llama2_13b peft=lora data=alpaca",
        "model.path: no folder is named meta-llama/Llama-2-13b-hf, and …: hf download meta-llama/Llama-2-13b-hf …",
        "data.train: no folder is named tatsu-lab/alpaca, and …: hf download tatsu-lab/alpaca --repo-type dataset …",
    ),
    model_case("model.path: m has no config.json; give the folder that save_pretrained wrote", {"m/x": ""}),
    model_case(
        "model.path: m holds no model.safetensors (found pytorch_model.bin); fmstune reads nothing else; save …",
        without(tiny_llama(), "m/model.safetensors") | {"m/pytorch_model.bin": b"x"},
    ),
    model_case(
        "model.path: m holds no model.safetensors (found no weights); …", without(tiny_llama(), "m/model.safetensors")
    ),
    model_case(
        "model.path: m has the model_type 'lama', unknown to this transformers; did you mean 'llama'?",
        tiny_llama(model_type="lama"),
    ),
    model_case("model.path: the config.json of m names no model_type; add …", tiny_llama(model_type=None)),
    model_case(
        "model.path: m needs code of its own (modeling_mine.Mine), and fmstune runs none from a model; take …",
        tiny_llama(model_type="mine", auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"}),
    ),
    model_case(
        "model.path: m holds a BertForMaskedLM, but tuning needs a BertLMHeadModel, a causal language model",
        tiny_llama(model_type="bert", architectures=["BertForMaskedLM"]),
    ),
    model_case("model.path: m/config.json is not JSON: …", tiny_llama() | {"m/config.json": "{x"}),
    model_case(
        "model.tokenizer: the tokenizer has … ids and the model 500 embeddings; take the model's own tokenizer, and …",
        tiny_llama(vocab_size=500, pad_token_id=None) | {"m/model.safetensors": FEWER_ROWS},
    ),
    model_case("model.path: the tokenizer m cannot be loaded: …", tiny_llama() | {"m/tokenizer.json": "{x"}),
    model_case(
        "model.path: m/model.safetensors is damaged or cut short (…); copy it again",
        tiny_llama() | {"m/model.safetensors": WEIGHTS[: len(WEIGHTS) // 2]},
    ),
    model_case("model.path: m/model.safetensors is empty; copy it again", tiny_llama() | {"m/model.safetensors": b""}),
    model_case(
        "model.path: m/model.safetensors is damaged or cut short (…); copy it again",
        tiny_llama() | {"m/model.safetensors": b"damaged"},
    ),
    model_case(
        "model.path: m/model.safetensors.index.json names pytorch_model-1.bin; fmstune reads safetensors only; …",
        without(tiny_llama(), "m/model.safetensors")
        | {"m/model.safetensors.index.json": '{"weight_map": {"lm_head.weight": "pytorch_model-1.bin"}}'},
    ),
    model_case(
        "model.path: m has weights of another shape for …, which would be random; give …",
        tiny_llama(intermediate_size=64),
    ),
    model_case("model.path: m/config.json: hidden_size must be at least 1, got 0", tiny_llama(hidden_size=0)),
    model_case(
        "model.path: m/config.json: num_attention_heads must be at least 1, got 0", tiny_llama(num_attention_heads=0)
    ),
    model_case(
        "model.path: m/config.json has values that transformers refuses: …rope_parameters…",
        tiny_llama(rope_parameters={"rope_type": "llama3"}),
    ),
    model_case(
        "model.path: m/config.json: rope_parameters.rope_theta must be a number above 0, got 0",
        tiny_llama(rope_parameters={"rope_theta": 0}),
    ),
    case(
        "peft=lora model.adapter=a",
        "model.adapter: a/adapter_model.safetensors is damaged or cut short (…); copy it again",
        a__adapter_config_json='{"peft_type": "LORA"}',
        a__adapter_model_safetensors="damaged",
    ),
    case("model.tokenizer=./nowhere", "model.tokenizer: no folder nowhere, and './nowhere' is not a hub id …"),
    case("model.tokenizer=m", "model.tokenizer: m has no tokenizer_config.json; give the folder …", m__readme_txt="x"),
    case(
        "model.tokenizer=nowhere",
        "model.tokenizer: no folder is named nowhere, and it is neither …; did you mean 'nowhere.json'?",
        nowhere_json="{}",
    ),
    case("model.architecture={hidden_size:128}", "model.architecture needs model_type, such as llama"),
    case(
        "model.architecture={model_type:lama}",
        "model.architecture.model_type: transformers knows no 'lama'; did you mean 'llama'?",
    ),
    case(
        "model.architecture={model_type:llama,hidden_sise:64}",
        "model.architecture.hidden_sise: llama has no such value; did you mean 'hidden_size'?",
    ),
    case(
        "model.architecture={model_type:llama,hidden_size:64}",
        "model.architecture.hidden_size is 64, but package:tiny_llama has …; correct it",
    ),
]


FMS = [
    case("model.backend=fsm", "model.backend must be one of transformers, fms; got 'fsm'; did you mean 'fms'?"),
    case(
        "model.backend=fms model.attention=eager",
        "model.attention=eager: ibm-fms computes with torch's SDPA; set auto, or set model.backend=transformers",
    ),
    case(
        "check model.backend=fms peft=lora launcher.device=cuda 'model.quantization={load_in_4bit: true}'",
        "model.quantization: bitsandbytes is untested on the blocks of ibm-fms; set model.backend=transformers",
    ),
    case(
        "model.backend=fms peft=lora peft.target_modules=[attn.in_proj.qkv_fused,dense]",
        "peft.target_modules: 'attn.in_proj.qkv_fused' is a name of ibm-fms; …: q_proj, k_proj, v_proj in Llama, …",
        "peft.target_modules: 'dense' is a name of ibm-fms; …: o_proj in Llama, attn.c_proj in GPTBigCode",
    ),
    Case(
        "model=causal_lm model.path=m model.backend=fms",
        ("model.backend=fms takes llama and gpt_bigcode, and this model is mistral; set model.backend=transformers",),
        tiny_llama(model_type="mistral", architectures=["MistralForCausalLM"]),
    ),
    Case(
        "model=causal_lm model.path=m model.backend=fms",
        ("model.backend=fms: ibm-fms has no llama with hidden_act='gelu_new', only …; set model.backend=transformers",),
        tiny_llama(hidden_act="gelu_new"),
    ),
]


FOUR_BITS = "'model.quantization={load_in_4bit: true}'"


ON_A_GPU = "check peft=lora launcher.device=cuda"


KERNELS = [
    case(
        "model.kernels=liger launcher.device=cpu",
        "model.kernels=liger needs a CUDA device, as Triton compiles its kernels, and launcher.device=cpu; …",
    ),
    case(
        "training=fast",
        "model.kernels=liger needs a CUDA device, as Triton compiles its kernels, and the device is cpu; …",
    ),
    case(
        "model.kernels=liger model.backend=fms launcher.device=cuda",
        "model.kernels=liger replaces blocks of transformers; set it to none under model.backend=fms",
    ),
    case("model.kernels=ligger", "model.kernels must be one of none, liger; got 'ligger'; did you mean 'liger'?"),
    case(
        "training=low_memory peft=lora",
        "training.optim=adamw_8bit needs a CUDA device, and the device is cpu; set adamw_torch_fused, or plan for a …",
    ),
]


QUANTIZATION = [
    case("peft=lora model.quantization=4bit", "model.quantization is a group of fields, got '4bit'; set them as …"),
    case(
        "peft=lora 'model.quantization={load_in_4bits: true}'",
        "model.quantization.load_in_4bits: unknown field; did you mean 'load_in_4bit'?",
    ),
    case(
        "peft=lora 'model.quantization={load_in_4bit: true, bnb_4bit_quant_type: nf5}'",
        "model.quantization.bnb_4bit_quant_type must be one of nf4, fp4; got 'nf5'; did you mean 'nf4'?",
    ),
    case(
        f"check launcher.device=cuda {FOUR_BITS}",
        "model.quantization: quantised weights cannot be trained; choose an adapter (peft=lora), or null",
    ),
    case(
        f"{ON_A_GPU} 'model.quantization={{load_in_4bit: true, load_in_8bit: true}}'",
        "model.quantization: load_in_4bit and load_in_8bit are both set; set one of them to true",
    ),
    case(
        f"{ON_A_GPU} 'model.quantization={{bnb_4bit_quant_type: fp4}}'",
        "model.quantization: load_in_4bit and load_in_8bit are both false; set one of them to true",
    ),
    case(
        f"{ON_A_GPU} 'model.quantization={{load_in_8bit: true, llm_int8_threshold: 0}}'",
        "model.quantization.llm_int8_threshold must be above 0 and finite, got 0",
    ),
    case(
        f"peft=lora launcher.device=cpu {FOUR_BITS}",
        "model.quantization needs a CUDA device, and launcher.device=cpu; set it to null",
    ),
    case(
        "model=tiny_gpt_bigcode model.attention=varlen",
        "model.attention=varlen: GPTBigCodeForCausalLM has attention dropout, which varlen does not compute; choose …",
    ),
    case(
        "check model=gemma2_2b model.attention=varlen",
        "model.attention=varlen: Gemma2ForCausalLM has a soft cap of scores, which varlen does not compute; choose …",
    ),
    case(
        f"{ON_A_GPU} peft.init_lora_weights=pissa evaluation.base=false {FOUR_BITS}",
        "peft.init_lora_weights=pissa changes the base weights, and quantised weights cannot change; leave it out",
    ),
    case(
        "check peft=dora launcher.device=cuda 'model.quantization={load_in_8bit: true}'",
        "peft.use_dora does not work on an 8-bit base; set model.quantization.load_in_4bit instead",
    ),
]


SAVED_PROMPT = '{"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 3}'


ADAPTERS = [
    case(
        "peft=lora peft.target_modules=[q_prj]",
        f"peft.target_modules: no module is named 'q_prj'; did you mean 'q_proj'?; {LLAMA_TARGETS}",
    ),
    case(
        "peft=lora peft.target_modules=[q_proj,v_prj]",
        f"peft.target_modules: no module is named 'v_prj'; did you mean 'v_proj'?; {LLAMA_TARGETS}",
    ),
    case(
        "peft=lora peft.target_modules=[lm_head]", "peft.target_modules: 'lm_head' matches the output layer, … leave …"
    ),
    case("peft=lora peft.target_modules=[mlp]", "peft.target_modules: 'mlp' matches LlamaMLP, without a weight …"),
    case("peft=lora peft.target_modules=[]", "peft.target_modules is empty, so nothing would be trained; give names …"),
    case("peft=lora peft.target_modules=q_proj", f"peft.target_modules: 'q_proj' matches no module …; {LLAMA_TARGETS}"),
    case("peft=lora peft.target_modules='\"(\"'", "peft.target_modules: '(' is not a regular expression: …"),
    case(
        "peft=lora peft.target_modules=3", "peft.target_modules must be a list of names, one name or all-linear, got 3"
    ),
    case("peft=lora peft.inference_mode=true", "peft.inference_mode=true would leave nothing to train; leave it out"),
    case(
        "peft=lora peft.target_parameters=[nosuch] peft.lora_dropout=0",
        "peft.target_parameters: no parameter is named 'nosuch'; the names end like q_proj.weight",
    ),
    case(
        "peft=lora 'peft.rank_pattern={nosuch: 4}' 'peft.alpha_pattern={k_proj: 4}'",
        "peft.rank_pattern: 'nosuch' matches no module that is adapted; see peft.target_modules",
        "peft.alpha_pattern: 'k_proj' matches no module that is adapted; see peft.target_modules",
    ),
    case("peft=lora 'peft.rank_pattern={*_proj: 4}'", "peft: LoraConfig refuses these fields: nothing to repeat …"),
    case("peft=lora peft.layers_to_transform=[99]", "peft: LoraConfig refuses these fields: Target modules … not …"),
    case("peft=lora peft.exclude_modules=3", "peft: LoraConfig refuses these fields: …not iterable"),
    case(
        "peft=lora 'peft.megatron_config={a: 1}'", "peft: LoraConfig refuses these fields: No module named 'megatron'"
    ),
    case(
        "peft=lora peft.trainable_token_indices=[1,99999]",
        "peft.trainable_token_indices: no token 99999; the ids end at …",
    ),
    case(
        "peft=prompt_tuning peft.token_dim=7 peft.num_layers=7",
        "peft.token_dim is 7, and the model has 96; leave it out",
        "peft.num_layers is 7, and the model has …; leave it out",
    ),
    case(
        "peft=prompt_tuning peft.num_transformer_submodules=2",
        "peft.num_transformer_submodules is 2, and the model has 1; leave it out",
    ),
    case(
        "peft=prompt_tuning peft.num_attention_heads=7",
        "peft.num_attention_heads is 7, and the model has …; leave it out",
    ),
    case(
        "peft=lora peft.init_lora_weights=foo",
        "peft.init_lora_weights must be true, false or one of gaussian, orthogonal, …; got 'foo'",
    ),
    case(
        "peft=lora peft.init_lora_weights=loftq",
        "peft.init_lora_weights=loftq needs an unquantised base, which PEFT quantises itself; leave it out",
    ),
    case(
        "peft=lora peft.init_lora_weights=eva",
        "peft.init_lora_weights=eva needs a pass over the data that fmstune does not make; leave it out",
    ),
    case(
        "peft=lora peft.init_lora_weights=pissa_niter_4",
        "peft.init_lora_weights=pissa_niter_4 changes the base to compare with; set evaluation.base=false",
    ),
    case("peft=lora peft.modules_to_save=[foo]", "peft.modules_to_save: no module is named 'foo'"),
    case("peft=lora peft.task_type=SEQ_CLS", "peft.task_type must be CAUSAL_LM, got 'SEQ_CLS'; leave it out"),
    case(
        "peft=prompt_tuning peft.prompt_tuning_init=TEXT", "peft.prompt_tuning_init=TEXT needs …init_text, the words …"
    ),
    case("peft=prompt_tuning peft.prompt_tuning_init_text=x", "peft.prompt_tuning_init_text needs …init=TEXT; …"),
    case(
        "peft=lora peft._target_=peft.LoRaConfig",
        "peft._target_: the installed peft has no … class 'LoRaConfig'; did you mean 'LoraConfig'?",
    ),
    case("peft=lora peft._target_=os.system", "peft._target_ must be a PEFT configuration such as peft.LoraConfig, …"),
    case(
        "model.adapter=there",
        "model.adapter is an adapter to train further, and peft=full has none; choose peft=lora",
        "model.adapter: no folder is named there, and it is neither in the hub's cache nor can the hub be reached …",
    ),
    case("peft=lora model.adapter=./there", "model.adapter: no folder there, and './there' is not a hub id …"),
    case("peft=lora model.adapter=there", "model.adapter: no folder is named there, …"),
    case("peft=lora model.adapter=a", "model.adapter: a has no adapter_config.json; give the folder …", a__x_txt="x"),
    case(
        "peft=lora model.adapter=a",
        "model.adapter: a holds no adapter_model.safetensors (found adapter_model.bin); …",
        a__adapter_config_json="{}",
        a__adapter_model_bin="x",
    ),
    case(
        "peft=lora model.adapter=a",
        "model.adapter: a cannot be read as an adapter (…); give a folder …",
        a__adapter_config_json="{x",
        a__adapter_model_safetensors=NO_TENSORS,
    ),
    case(
        "peft=lora model.adapter=a",
        "model.adapter: a is of no method (no peft_type), and the peft group chose LORA; choose its method",
        a__adapter_config_json="{}",
        a__adapter_model_safetensors=NO_TENSORS,
    ),
    case(
        "peft=lora model.adapter=a",
        "model.adapter: a is PROMPT_TUNING, and the peft group chose LORA; choose its method",
        a__adapter_config_json=SAVED_PROMPT,
        a__adapter_model_safetensors=NO_TENSORS,
    ),
    case(
        "peft=prompt_tuning model.adapter=a",
        "model.adapter: PEFT cannot train saved virtual tokens further (PromptTuning); leave it out and train anew",
        a__adapter_config_json=SAVED_PROMPT,
        a__adapter_model_safetensors=NO_TENSORS,
    ),
]

CASES = [*MODELS, *KERNELS, *QUANTIZATION, *FMS, *ADAPTERS]


@wrong_inputs(CASES)
def test_a_wrong_model_is_answered_by_one_message_and_leaves_nothing(
    wrong: Case, fmstune: Callable[..., Any], tmp_path: Path
) -> None:
    assert_answered(wrong, fmstune, tmp_path)


@pytest.mark.parametrize(
    ("command", "files", "says"),
    [
        (
            "peft=lora model.adapter=a",
            {
                "a/adapter_config.json": '{"peft_type": "LORA", "target_modules": ["q_proj"]}',
                "a/adapter_model.safetensors": save({f"{QUERIES}.lora_A.weight": np.zeros((3, 3), np.float32)}),
            },
            "model.adapter: a does not fit the model: …",
        )
    ],
    ids=["an adapter of another shape"],
)
def test_what_only_loading_can_show_is_answered_and_recorded(
    command: str, files: Mapping[str, str | bytes], says: str, fmstune: Callable[..., Any], tmp_path: Path
) -> None:
    write(files, tmp_path)

    result = fmstune(*shlex.split(command))

    assert_says(result.err, [says])
    assert result.code == 2
    assert result.summary["status"] == "failed"
    assert result.summary["error"]["kind"] == "user"
    assert not (result.folder / "model").exists()
