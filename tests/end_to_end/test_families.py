"""The model files of whole families: their counts are the published ones, and each of their architectures is tuned."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from fmstune import files
from fmstune.config import freeze
from fmstune.config.groups import shipped_choices
from fmstune.config.job import Model
from fmstune.config.requests import Generation, Merge
from fmstune.errors import UserError
from fmstune.evaluation.ask import answer_prompts
from fmstune.models import adapter_targets, load, merge, shapes
from fmstune.models.architecture import build_empty, model_configuration
from fmstune.models.experts import find_experts
from fmstune.models.saved_weights import check_weights
from fmstune.training.pipeline import train
from tests import ROOT
from tests.composing import composed_tree
from tests.conftest import Result

pytestmark = pytest.mark.sampled(6)

TINY = ROOT / "src" / "fmstune" / "assets" / "tiny_llama"
FILES = {name: file for name, file in shipped_choices("model").items() if "architecture" in file}

PARAMETERS = {
    "gpt_bigcode": 15_517_456_384,
    "santacoder": 1_124_886_528,
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
    "llama3_1_8b": 8_030_261_248,
    "llama3_1_70b": 70_553_706_496,
    "llama3_2_1b": 1_235_814_400,
    "llama3_2_3b": 3_212_749_824,
    "llama3_3_70b": 70_553_706_496,
    "qwen2_5_0_5b": 494_032_768,
    "qwen2_5_1_5b": 1_543_714_304,
    "qwen2_5_3b": 3_085_938_688,
    "qwen2_5_7b": 7_615_616_512,
    "qwen2_5_14b": 14_770_033_664,
    "qwen2_5_32b": 32_763_876_352,
    "qwen2_5_72b": 72_706_203_648,
    "qwen3_0_6b": 596_049_920,
    "qwen3_1_7b": 1_720_574_976,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
    "qwen3_14b": 14_768_307_200,
    "qwen3_32b": 32_762_123_264,
    "qwen3_30b_a3b": 30_532_122_624,
    "qwen3_235b_a22b": 235_093_634_560,
    "mistral_7b": 7_248_023_552,
    "mistral_small_24b": 23_572_403_200,
    "mixtral_8x7b": 46_702_792_704,
    "mixtral_8x22b": 140_630_071_296,
    "gemma2_2b": 2_614_341_888,
    "gemma2_9b": 9_241_705_984,
    "gemma2_27b": 27_227_128_320,
    "gemma3_270m": 268_098_176,
    "gemma3_1b": 999_885_952,
    "gemma3_4b": 4_300_079_472,
    "gemma3_12b": 12_187_325_040,
    "gemma3_27b": 27_432_406_640,
    "phi4": 14_659_507_200,
    "phi4_mini": 3_836_021_760,
    "granite3_3_2b": 2_533_539_840,
    "granite3_3_8b": 8_170_864_640,
    "granite4_micro": 3_402_836_480,
    "granite4_h_micro": 3_191_396_096,
    "granite4_h_tiny": 6_939_037_248,
    "granite4_h_small": 32_207_337_984,
    "smollm2_135m": 134_515_008,
    "smollm2_360m": 361_821_120,
    "smollm2_1_7b": 1_711_376_384,
    "smollm3_3b": 3_075_098_624,
    "olmo2_1b": 1_484_916_736,
    "olmo2_7b": 7_298_617_344,
    "olmo2_13b": 13_716_198_400,
    "olmo2_32b": 32_234_279_936,
    "starcoder2_3b": 3_030_371_328,
    "starcoder2_7b": 7_173_923_840,
    "starcoder2_15b": 15_957_889_024,
    "deepseek_r1_qwen_1_5b": 1_777_088_000,
    "deepseek_r1_qwen_7b": 7_615_616_512,
    "deepseek_r1_qwen_14b": 14_770_033_664,
    "deepseek_r1_qwen_32b": 32_763_876_352,
    "deepseek_r1_llama_8b": 8_030_261_248,
    "deepseek_r1_llama_70b": 70_553_706_496,
    "gpt_oss_20b": 20_914_757_184,
    "gpt_oss_120b": 116_829_156_672,
}
"""The counts that are published with the weights, a tied matrix counted once; of granite4_h_small 32B is published."""

ACTIVE = {
    "gpt_oss_120b": 5_711_982_912,
    "gpt_oss_20b": 4_187_440_704,
    "granite4_h_small": 8_803_121_664,
    "granite4_h_tiny": 1_465_470_528,
    "mixtral_8x22b": 39_161_468_928,
    "mixtral_8x7b": 12_879_925_248,
    "qwen3_30b_a3b": 3_353_032_704,
    "qwen3_235b_a22b": 22_190_763_520,
}
"""Parameters that compute a token; 5.1B and 3.6B without the embedding, 9B, 1B, 39B, 12.9B, 3.3B, 22B are published."""


def test_every_file_with_an_architecture_has_a_published_count() -> None:
    assert FILES.keys() == PARAMETERS.keys()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", FILES)
def test_the_parameters_are_those_that_are_published_and_the_file_names_what_is_there(name: str) -> None:
    file = FILES[name]
    model = build_empty(model_configuration(Model(path=file["path"], architecture=file["architecture"])))
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    experts = find_experts(model)
    assert (experts is not None) is (name in ACTIVE)
    if experts is not None:
        assert PARAMETERS[name] - experts.idle == ACTIVE[name]
        assert [ending.rpartition(".")[2] for ending in experts.fused] == ["gate_up_proj", "down_proj"]
    assert file["layer_cls"] in {type(module).__name__ for module in model.modules()}
    assert list(adapter_targets.target_problems(model, LoraConfig(target_modules=file["lora_targets"]))) == []
    assert list(files.absent("model.chat_template", file.get("chat_template", "package:chatml.jinja"))) == []


SMALL = {
    "vocab_size": 1536,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "shared_intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
}
OF_EACH_ARCHITECTURE = [
    *("llama3_2_1b", "qwen2_5_0_5b", "qwen3_0_6b", "qwen3_30b_a3b", "mistral_7b", "mixtral_8x7b", "gemma2_2b"),
    *("gemma3_1b", "gemma3_4b", "phi4", "granite3_3_2b", "granite4_micro", "granite4_h_tiny", "smollm3_3b", "olmo2_1b"),
    *("starcoder2_3b", "gpt_oss_20b"),
]
SMALL_PICTURES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
UNPACKED = ("granite4_micro", "granite4_h_tiny", "gpt_oss_20b")
"""Granite 4 has a state, and transformers 5.23 makes GPT-OSS's masks without the positions that tell rows apart."""


def tiny(name: str, folder: Path, **changes: Any) -> Path:
    """A model of the file's architecture, with small sizes and random weights, for the tokenizer of tiny_llama."""
    given, tokenizer = FILES[name]["architecture"], AutoTokenizer.from_pretrained(TINY)
    text = given.get("text_config", given)
    sizes = {key: size for key, size in SMALL.items() if text.get(key)}
    sizes["num_key_value_heads"] = 4 if text["num_key_value_heads"] == text["num_attention_heads"] else 2
    if "layer_types" in given:
        sizes["layer_types"] = [given["layer_types"][0], given["layer_types"][5]]
    ids = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    if text is not given:
        pictures = {**given["vision_config"], **SMALL_PICTURES, "image_size": 28}
        sizes = {"text_config": {**text, **sizes, **ids}, "vision_config": pictures, "mm_tokens_per_image": 4}
        sizes |= {"image_token_index": 5, "boi_token_index": 6, "eoi_token_index": 7}
    config = AutoConfig.for_model(**{**given, **sizes, **ids, **changes})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def test_every_architecture_of_a_file_is_trained_here() -> None:
    trained = {FILES[name]["architecture"]["model_type"] for name in OF_EACH_ARCHITECTURE}
    assert trained == {file["architecture"]["model_type"] for file in FILES.values()} - {"gpt_bigcode"}


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.arange(3, 60)[None], use_cache=False).logits


def trained(name: str, base: Path, *words: str) -> dict[str, Any]:
    """The summary of a run of two steps, without the parent's work, which is the same for all models."""
    job = freeze.freeze(
        composed_tree(
            *(f"model={name}", "model.architecture=null", f"model.path={base}", "model.tokenizer=package:tiny_llama"),
            *("peft=lora", "peft.lora_dropout=0", "output_dir=run", "data.max_rows=16", "data.max_length=128"),
            *("training.max_steps=2", "training.learning_rate=1e-2", "training.save_strategy=no", "evaluation=none"),
            *words,
        )
    ).job
    Path("run").mkdir()
    assert train(job) == 0
    return json.loads(Path("run/summary.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_EACH_ARCHITECTURE)
def test_a_tiny_model_of_it_trains_is_merged_and_answers_as_plain_transformers_does(name: str, tmp_path: Path) -> None:
    base = tiny(name, tmp_path / "base")
    summary = trained(name, base, f"training.packing={str(name not in UNPACKED).lower()}")
    assert summary["steps"] == 2
    if name not in UNPACKED:
        assert summary["packing"]["difference"] < 1e-4 < summary["packing"]["mixed_difference"]
    assert merge.run_merge(Merge(model=("run/model",), out="merged")) == 0

    adapted, merged, untuned = (
        PeftModel.from_pretrained(loaded(base), "run/model"),
        loaded(Path("merged")),
        loaded(base),
    )
    assert torch.allclose(logits(merged), logits(adapted), atol=1e-4)
    assert not torch.allclose(logits(merged), logits(untuned), atol=1e-3)
    answer_prompts(Generation(model="run/model", text="The parcel came", max_new_tokens=4))
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    ids = merged.generate(**tokenizer("The parcel came", return_tensors="pt"), max_new_tokens=4, do_sample=False)
    (answer,) = json.loads(Path("inference_result.json").read_text())
    assert answer["output"] == tokenizer.decode(ids[0], skip_special_tokens=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", UNPACKED)
def test_packed_rows_that_would_see_each_other_are_refused(name: str, tmp_path: Path) -> None:
    base = tiny(name, tmp_path / "base")
    with pytest.raises(UserError, match=r"training\.packing: (packed documents see each other|the model refuses)"):
        trained(name, base, "training.packing=true")


MIXTURES = {
    "mixtral_8x7b": "mlp.experts",
    "qwen3_30b_a3b": "mlp.experts",
    "granite4_h_tiny": "block_sparse_moe.experts",
    "gpt_oss_20b": "mlp.experts",
}
"""Where the experts of a block are."""


def experts_of(name: str) -> list[str]:
    return [f"{MIXTURES[name]}.gate_up_proj", f"{MIXTURES[name]}.down_proj"]


@pytest.mark.slow
@pytest.mark.parametrize("name", MIXTURES)
def test_experts_are_adapted_balanced_and_merged(name: str, tmp_path: Path) -> None:
    base = tiny(name, tmp_path / "base")
    words = ("peft.target_modules=[q_proj]", f"peft.target_parameters=[{','.join(experts_of(name))}]")
    trained(name, base, *words, "training.router_aux_loss_coef=0.5", "training.logging_steps=1")
    logged = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    # four experts that are used evenly, two a token
    assert [line["aux_loss"] for line in logged if "aux_loss" in line] == pytest.approx([2.0, 2.0], abs=0.3)
    config = json.loads(Path("run/model/adapter_config.json").read_text())
    assert sorted(config["target_parameters"]) == sorted(experts_of(name))
    adapted, untuned = PeftModel.from_pretrained(loaded(base), "run/model").eval(), loaded(base)
    changed = logits(adapted)
    for layer in adapted.modules():
        if isinstance(layer, LoraLayer) and not isinstance(layer, ParamWrapper):
            layer.lora_B["default"].weight.data.zero_()
    assert not torch.allclose(logits(adapted), logits(untuned), atol=1e-4)
    assert merge.run_merge(Merge(model=("run/model",), out="merged")) == 0
    assert torch.allclose(logits(loaded(Path("merged"))), changed, atol=1e-4)


@pytest.mark.slow
def test_a_mixture_is_evaluated_without_the_router_s_loss(tmp_path: Path) -> None:
    watched = ("training.eval_strategy=steps", "training.eval_steps=1", "training.router_aux_loss_coef=1.0")
    asked = ("evaluation=held_out", "evaluation.max_new_tokens=2", "evaluation.max_rows=null")
    summary = trained("mixtral_8x7b", tiny("mixtral_8x7b", tmp_path / "base"), *watched, *asked, "data.max_rows=96")
    logged = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    (*_, last) = (line["eval_loss"] for line in logged if "eval_loss" in line)
    assert summary["tuned"]["eval_loss"] == pytest.approx(last, rel=1e-4)


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]], ids=str)
def test_an_adapter_of_layers_that_misses_the_experts_is_noted(name: str, targets: str | list[str]) -> None:
    architecture = {**FILES[name]["architecture"], "num_hidden_layers": 1, "vocab_size": 8, "pad_token_id": None}
    architecture |= {"layer_types": ["attention"]} if "layer_types" in architecture else {}
    config = model_configuration(Model(path="a/b", architecture=architecture))
    found = shapes.dimensions(build_empty(config), LoraConfig(target_modules=targets))
    # once layers in these two, which PEFT remembers
    reached = targets == "all-linear" and name in ("mixtral_8x7b", "qwen3_30b_a3b")
    assert list(found.missed_experts) == ([] if reached else experts_of(name))
    both = LoraConfig(target_modules=["q_proj"], target_parameters=experts_of(name))
    assert shapes.dimensions(build_empty(config), both).missed_experts == ()


@pytest.mark.slow
def test_the_plan_names_active_parameters_and_experts_that_are_missed(fmstune: Callable[..., Result]) -> None:
    Path("rows.jsonl").write_text('{"output": "late\\n### Response: complaint"}\n')
    words = ("model=mixtral_8x7b", "peft=lora", "data=text", "data.train=rows.jsonl", "launcher.device=cuda")
    done = fmstune("check", *words)
    assert done.code == 0, done.err
    assert "base 46,702,792,704 (12,879,925,248 active a token), adapter" in done.out
    wanted = "peft.target_parameters=[mlp.experts.gate_up_proj,mlp.experts.down_proj] peft.lora_dropout=0"
    assert f"{wanted} adapts them too" in done.out
    assert "adapts them too" not in fmstune("check", *words, *wanted.split()).out


@pytest.mark.slow
def test_dropout_over_experts_and_a_router_s_loss_without_a_router_are_refused(fmstune: Callable[..., Result]) -> None:
    done = fmstune("check", "peft=lora", "peft.target_parameters=[q_proj.weight]")
    assert "peft.lora_dropout must be 0 with peft.target_parameters" in done.err
    done = fmstune("check", "peft=lora", "training.router_aux_loss_coef=0.1")
    assert "training.router_aux_loss_coef=0.1: this llama has no experts to keep evenly used" in done.err


def test_experts_that_are_packed_in_four_bits_are_unpacked(tmp_path: Path) -> None:
    folder = tiny("gpt_oss_20b", tmp_path / "base", intermediate_size=64)
    weights, packed = load_file(folder / "model.safetensors"), {}
    for name, weight in weights.items():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, inputs, outputs = weight.shape
            # two numbers a byte, 2 is 1.0 of four bits; a scale for each 32 numbers, 127 is 1.0
            packed[f"{name}_blocks"] = torch.full((experts, outputs, inputs // 32, 16), 0x22, dtype=torch.uint8)
            packed[f"{name}_scales"] = torch.full((experts, outputs, inputs // 32), 127, dtype=torch.uint8)
        else:
            packed[name] = weight
    save_file(packed, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps(config))

    model, tokenizer = Model(path=str(folder), tokenizer="package:tiny_llama"), load.Tokenizer(None)
    check_weights(model, build_empty(model_configuration(model)))
    found = load.load_model(model, tokenizer, dtype="float32", attention="eager")
    expert = found.model.layers[0].mlp.experts
    assert (expert.gate_up_proj == 1).all() and (expert.down_proj == 1).all()
