"""The model files of whole families: their counts are the published ones, and each of their architectures is tuned."""

import pytest
from peft import LoraConfig

from fmstune.config.groups import shipped_choices
from fmstune.config.job import Model
from fmstune.models import adapter_targets
from fmstune.models.architecture import build_empty, model_configuration
from fmstune.models.experts import find_experts

pytestmark = pytest.mark.sampled(6)

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
    "gemma2_2b": 2_614_341_888,
    "gemma2_9b": 9_241_705_984,
    "gemma2_27b": 27_227_128_320,
    "gemma3_270m": 268_098_176,
    "gemma3_1b": 999_885_952,
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
}
"""The counts that are published with the weights, a tied matrix counted once; of granite4_h_small 32B is published."""

ACTIVE = {
    "gpt_oss_20b": 4_187_440_704,
    "granite4_h_small": 8_803_121_664,
    "granite4_h_tiny": 1_465_470_528,
    "mixtral_8x7b": 12_879_925_248,
    "qwen3_30b_a3b": 3_353_032_704,
    "qwen3_235b_a22b": 22_190_763_520,
}
"""Parameters that compute a token; 3.6B without the embedding, 9B, 1B, 12.9B, 3.3B and 22B are published."""


def test_every_file_with_an_architecture_has_a_published_count() -> None:
    assert FILES.keys() == PARAMETERS.keys()


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
