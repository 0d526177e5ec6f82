"""`fmstune merge`: the merged model says what the adapters said on their base, in plain transformers too."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from fmstune.models import merge
from tests import ROOT, small
from tests.conftest import Result
from tests.fixtures import forked

Fmstune = Callable[..., Result]
TINY = ROOT / "src" / "fmstune" / "assets" / "tiny_llama"
QUICK = (
    "training.max_steps=3",
    "training.learning_rate=1e-2",
    "data.max_rows=32",
    "evaluation=none",
    "training.save_strategy=no",
)
TEXTS = ["### Text: I was charged twice for the", "Hello, my new lamp arrived and it", "Thanks for", "<a> driver"]


def loaded(folder: str | Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.arange(3, 60)[None], use_cache=False).logits


def lora(folder: Path, base: Path, *, seed: int, r: int, targets: list[str] | str, **options: Any) -> Path:
    """An adapter with random weights on this base."""
    torch.manual_seed(seed)
    config = LoraConfig(r=r, lora_alpha=r, target_modules=targets, init_lora_weights=False, **options)
    model = get_peft_model(loaded(base), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "trainable_tokens_delta" in name:
                parameter += 0.5
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "dora", "ia3"])
@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt_bigcode"])
def test_a_merged_run_generates_the_same_text(name: str, method: str, fmstune: Fmstune, tmp_path: Path) -> None:
    added = "model.special_tokens={extra_special_tokens: ['<a>', '<b>']}" if method == "lora" else "seed=1"
    assert fmstune(f"peft={method}", f"model={name}", *QUICK, added, "output_dir=run").code == 0
    saved = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    done = fmstune("merge", "--model", "run", "--out", "merged")
    assert done.code == 0, done.err
    assert f"merged 1 adapter into package:{name}: " in done.out
    same, positions = re.findall(r"the likeliest token is the same at (\d+) of (\d+) positions", done.out)[0]
    assert same == positions and int(positions) > 40
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == saved

    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    for model in ("run", "merged"):
        ask = ("--text_file", "texts.txt", "--max_new_tokens", "12", "--out_file", f"{model}.json")
        assert fmstune("generate", "--model", model, *ask).code == 0
    assert json.loads(Path("run.json").read_text()) == json.loads(Path("merged.json").read_text())
    # without fmstune
    tokenizer, plain = AutoTokenizer.from_pretrained("merged"), loaded("merged")
    ids = plain.generate(**tokenizer(TEXTS[0], return_tensors="pt"), max_new_tokens=12, do_sample=False)
    assert (
        tokenizer.decode(ids[0], skip_special_tokens=True) == json.loads(Path("merged.json").read_text())[0]["output"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_added_tokens_grow_the_merged_embeddings(
    tied: bool, fmstune: Fmstune, tmp_path: Path, rows_file: Callable[..., Path]
) -> None:
    architecture = {**small.LLAMA, "vocab_size": 300, "tie_word_embeddings": tied}
    base = small.save(tmp_path / "base", architecture=architecture)
    words = ("model=causal_lm", f"model.path={base}", "model.special_tokens={extra_special_tokens: ['<a>', '<b>']}")
    rows = ("data=text", f"data.train={rows_file(small.TAGGED)}")
    assert fmstune("peft=lora", *words, *QUICK, *rows, "output_dir=run").code == 0
    assert fmstune("merge", "--model", "run", "--out", "merged").code == 0
    merged, tokenizer = loaded("merged"), AutoTokenizer.from_pretrained("merged")
    assert len(tokenizer) == merged.config.vocab_size == merged.get_input_embeddings().weight.shape[0] == 303
    assert merged.config.pad_token_id == tokenizer.pad_token_id == 302
    assert merged.config.tie_word_embeddings is tied
    tables = merged.get_input_embeddings().weight, merged.get_output_embeddings().weight
    assert (tables[0].data_ptr() == tables[1].data_ptr()) is tied
    grown = loaded(base)
    grown.resize_token_embeddings(303)
    with torch.inference_mode():
        ids = torch.tensor([[5, 300, 7, 301]])
        expected = PeftModel.from_pretrained(grown, "run/model").eval()(input_ids=ids).logits
        assert torch.allclose(merged(input_ids=ids).logits, expected, atol=1e-5)
    # a run does not train the rows of a tied embedding
    assert torch.allclose(tables[0][300], tables[0][301], atol=1e-3) is tied


@pytest.mark.sampled(2)
@pytest.mark.parametrize("tied", [True, False])
def test_trained_rows_go_into_both_embeddings_where_they_are_tied(tied: bool, fmstune: Fmstune, tmp_path: Path) -> None:
    base = small.save(tmp_path / "base", architecture={**small.LLAMA, "tie_word_embeddings": tied})
    lora(tmp_path / "one", base, seed=1, r=2, targets=["q_proj"], trainable_token_indices=[5, 7])
    done = fmstune("merge", "--model", "one", "--out", "merged")
    assert done.code == 0, done.err
    before, after = loaded(base), loaded("merged")
    for rows, moved in ((before.get_input_embeddings(), True), (before.get_output_embeddings(), tied)):
        now = after.get_input_embeddings() if rows is before.get_input_embeddings() else after.get_output_embeddings()
        changed = (now.weight != rows.weight).any(dim=1).nonzero().flatten().tolist()
        assert changed == ([5, 7] if moved else [])


def test_adapters_add_up_by_their_weights_whatever_their_ranks(fmstune: Fmstune, tmp_path: Path) -> None:
    base = small.save(tmp_path / "base")
    lora(tmp_path / "one", base, seed=1, r=2, targets=["q_proj", "v_proj"])
    lora(tmp_path / "two", base, seed=2, r=8, targets=["v_proj", "down_proj"], use_rslora=True)
    words = ("merge", "--model", "one", "--weight", "0.5", "--model", "two", "--weight=-2", "--out", "merged")
    done = fmstune(*words)
    assert done.code == 0, done.err
    assert f"merged 2 adapters into {base}: " in done.out
    before, found = loaded(base).state_dict(), loaded("merged").state_dict()
    expected = {name: weight.clone() for name, weight in before.items()}
    for folder, scale in (("one", 0.5), ("two", -2 * 8 / 8**0.5)):
        tensors = load_file(Path(folder) / "adapter_model.safetensors")
        for name in {key.partition(".lora_")[0] for key in tensors}:
            update = tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
            expected[name.removeprefix("base_model.model.") + ".weight"] += scale * update
    for name, weight in expected.items():
        assert torch.allclose(found[name], weight, atol=1e-5), name
    assert not torch.allclose(
        found["model.layers.0.self_attn.v_proj.weight"], before["model.layers.0.self_attn.v_proj.weight"]
    )
    record = json.loads(Path("merged/merge.json").read_text())
    assert record["adapters"] == [{"model": "one", "weight": 0.5}, {"model": "two", "weight": -2.0}]
    assert record["same"] == record["positions"] > 40


@pytest.mark.slow
def test_weights_are_written_in_shards_and_in_the_dtype_that_is_asked_for(fmstune: Fmstune, tmp_path: Path) -> None:
    base = small.save(tmp_path / "base")
    lora(tmp_path / "one", base, seed=1, r=2, targets=["q_proj"])
    done = fmstune("merge", "--model", "one", "--out", "m", "--dtype", "bfloat16", "--max_shard_size", "30KB")
    assert done.code == 0, done.err
    files = sorted(Path("m").glob("*.safetensors"))
    assert f"wrote m: {len(files)} files of weights, " in done.out
    assert {file.stat().st_mode for file in files} == {Path("m/config.json").stat().st_mode}
    index = json.loads(Path("m/model.safetensors.index.json").read_text())
    assert {file.name for file in files} == set(index["weight_map"].values()) and len(files) > 2
    for file in files:
        with safe_open(file, "pt") as tensors:
            assert {
                tensors.get_slice(name).get_dtype()
                for name in index["weight_map"]
                if index["weight_map"][name] == file.name
            } == {"BF16"}
    assert AutoModelForCausalLM.from_pretrained("m").dtype is torch.bfloat16


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", list(merge.TOLERANCE))
def test_each_dtype_stays_within_its_tolerance(dtype: str, fmstune: Fmstune, tmp_path: Path) -> None:
    base = small.save(tmp_path / "base")
    lora(tmp_path / "one", base, seed=1, r=4, targets=["q_proj", "o_proj", "down_proj"])
    assert fmstune("merge", "--model", "one", "--out", "merged", "--dtype", dtype).code == 0
    record = json.loads(Path("merged/merge.json").read_text())
    assert record["dtype"] == dtype
    assert 0 < record["share"] < record["tolerance"] < record["moved"]


@pytest.mark.slow
def test_it_is_said_where_rounding_hides_what_was_learnt(fmstune: Fmstune, tmp_path: Path) -> None:
    base = small.save(tmp_path / "base")
    lora(tmp_path / "one", base, seed=1, r=4, targets=["q_proj"])
    words = ("merge", "--model", "one", "--weight", "1e-3", "--dtype")
    done = fmstune(*words, "bfloat16", "--out", "rounded")
    assert "note: bfloat16 rounds logits by " in done.out
    assert "--dtype float32 keeps more of what was learnt" in done.out
    assert "note: float32" not in fmstune(*words, "float32", "--out", "whole").out


def test_a_quantised_base_and_adapters_that_do_not_belong_together_are_refused(
    fmstune: Fmstune, tmp_path: Path
) -> None:
    base = small.save(tmp_path / "base")
    one = lora(tmp_path / "one", base, seed=1, r=2, targets=["q_proj"])
    two = lora(tmp_path / "two", base, seed=2, r=2, targets=["q_proj"])
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<c>"])
    tokenizer.save_pretrained(two)
    several = fmstune("merge", "--model", "one", "--model", "two", "--out", "merged")
    assert (
        several.err == "fmstune: error: --model: one and two have different vocabularies, first at token 300 ('<c>')\n"
    )

    other = small.save(tmp_path / "other")
    lora(tmp_path / "three", other, seed=3, r=2, targets=["q_proj"])
    several = fmstune("merge", "--model", "one", "--model", "three", "--out", "merged")
    assert f"--model: the adapters were tuned on different bases ({base}, {other}); pass the one " in several.err
    words = ("merge", "--model", "one", "--model", "three", "--base_model_name_or_path", "base", "--out", "both")
    assert fmstune(*words).code == 0

    file = base / "config.json"
    quantised = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": quantised}))
    refused = fmstune("merge", "--model", str(one), "--out", "merged")
    assert refused.code == 2 and f"--model: the base {base} is quantised" in refused.err
    assert not Path("merged").exists()


def test_broken_weights_are_not_merged(fmstune: Fmstune, tmp_path: Path) -> None:
    base = small.save(tmp_path / "base")
    file = lora(tmp_path / "one", base, seed=1, r=2, targets=["q_proj"]) / "adapter_model.safetensors"
    save_file({name: tensor / 0 for name, tensor in load_file(file).items()}, file)
    done = fmstune("merge", "--model", "one", "--out", "merged")
    assert done.code == 2 and "--model: PEFT cannot merge one: NaNs detected in the merged weights" in done.err
    assert not Path("merged").exists()


def test_a_merged_model_that_says_something_else_is_not_kept(
    fmstune: Fmstune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = small.save(tmp_path / "base")
    lora(tmp_path / "one", base, seed=1, r=2, targets=["q_proj"])
    monkeypatch.setitem(merge.TOLERANCE, "float32", 0.0)
    done = fmstune("merge", "--model", "one", "--out", "merged")
    assert done.code == 2
    assert "the merged model is not the adapter on its base: logits differ by " in done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "one"]


def test_logits_are_compared_by_size_and_by_the_likeliest_token() -> None:
    adapted = torch.tensor([[1.0, 0.0, 5.0], [0.0, 2.0, 0.0]])
    found = torch.tensor([[1.0, 0.0, 6.0], [2.0, 0.0, 0.0]])
    expected = merge.Logits(torch.zeros(2, 3), adapted)
    compared = merge.difference(expected, found)
    assert compared == (2.0, pytest.approx((9 / 30) ** 0.5), pytest.approx(1.0), 1, 2)


def test_the_newest_tokens_are_among_those_that_are_compared() -> None:
    tokenizer = small.byte_level_tokenizer()
    found = list(merge.prompts(tokenizer))
    assert [ids[1] for ids in found] == [299, 298, 297, 296]
    assert [tokenizer.decode([ids[0], *ids[2:]]) for ids in found] == list(merge.PROMPTS)


@pytest.mark.slow
def test_merging_takes_the_memory_of_the_model_and_a_shard(tmp_path: Path) -> None:
    """Anonymous memory: the pages of the file that is read are the system's to take back."""
    architecture = {**small.LLAMA, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 6}
    architecture |= {"num_attention_heads": 12, "num_key_value_heads": 12}
    base = small.save(tmp_path / "base", architecture=architecture)
    size = (base / "model.safetensors").stat().st_size
    assert size > 160e6
    lora(tmp_path / "one", base, seed=1, r=2, targets="all-linear")
    program = tmp_path / "program.py"
    program.write_text(f"""
import ctypes, re, threading, time
from fmstune.models import merge
from fmstune.config.requests import Merge

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

# glibc keeps what was freed below the size that it maps, as these small matrices are: M_MMAP_THRESHOLD
ctypes.CDLL(None).mallopt(-3, 100_000)
peak, before, done = 0, anonymous(), threading.Event()
def look():
    global peak
    while not done.wait(0.002):
        peak = max(peak, anonymous())
thread = threading.Thread(target=look)
thread.start()
merge.run_merge(Merge(model=({str(tmp_path / "one")!r},), out={str(tmp_path / "merged")!r}, max_shard_size="20MB"))
done.set()
thread.join()
print(peak - before)
""")
    ended = forked.run([sys.executable, "-P", program])
    assert ended.returncode == 0, ended.stderr
    taken = int(ended.stdout.split()[-1])
    # the base itself is mapped from its file; what is merged is not
    assert 0.9 * size < taken < size + 20e6 + 30e6
