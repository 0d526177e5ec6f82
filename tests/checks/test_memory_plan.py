"""Memory, steps and tokens of a run, against literal numbers and against what torch and transformers really do."""

import contextlib
import json
import weakref
from dataclasses import asdict, replace

import pytest
import torch
from datasets import Dataset
from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments

from fmstune.checks.memory import (
    activation_bytes,
    attention_mask_bytes,
    device_memory,
    optimizer_bytes,
    quantised_bytes,
)
from fmstune.checks.memory_plan import count_steps, packing_slowdown, plan_work, render_plan
from fmstune.checks.plan_inputs import Dimensions, Machine, Rows, Sharing, Training, Work
from fmstune.checks.precision import Precision
from fmstune.models import shapes
from fmstune.models.architecture import build_empty

pytestmark = pytest.mark.sampled(24)

FLOAT32 = Precision("float32", "float32", None, "because")
FULL_GPU = Precision("float32", "float32", "bfloat16", "because")
ADAPTER_GPU = Precision("bfloat16", "float32", "bfloat16", "because")
LLAMA_7B = Dimensions(
    base_parameters=6_738_415_616,
    adapter_parameters=0,
    trainable_parameters=6_738_415_616,
    hidden_size=4096,
    layers=32,
    heads=32,
    kv_heads=32,
    head_dim=128,
    intermediate_size=11008,
    vocabulary=32000,
    tied=False,
    max_positions=4096,
    mlp_kept=3,
    rms_norm=True,
    dropout=False,
    linear_inputs=32 * (2 * 4096 + 11008),
    linear_inputs_each=32 * (6 * 4096 + 11008),
    adapter_dropout=False,
    virtual_tokens=0,
)
LORA_7B = replace(
    LLAMA_7B,
    adapter_parameters=4_194_304,
    trainable_parameters=4_194_304,
    linear_inputs=32 * 4096,
    linear_inputs_each=32 * 2 * 4096,
)
ROWS = Rows(rows=1000, tokens=200_000, longest=512, supervised_share=0.25)
TRAINING = Training(max_length=512, per_device_train_batch_size=4, gradient_accumulation_steps=4)
LORA_GPU = Work(LORA_7B, ROWS, TRAINING, Machine("cuda", "sdpa", ADAPTER_GPU))
FULL_7B_GPU = Work(LLAMA_7B, ROWS, TRAINING, Machine("cuda", "sdpa", FULL_GPU))
FULL_7B_CPU = Work(LLAMA_7B, ROWS, TRAINING, Machine("cpu", "sdpa", FLOAT32))


def with_training(work, **changes):
    return replace(work, training=replace(work.training, **changes))


# memory


def test_the_memory_of_lora_on_a_gpu():
    held = device_memory(LORA_GPU)
    assert held.weights == 2 * 6_738_415_616 + 4 * 4_194_304
    assert (held.gradients, held.optimizer) == (4 * 4_194_304, 8 * 4_194_304)
    # a block keeps two norm inputs in float32, q k v and output, three tensors of the MLP, q's and v's inputs
    block = 8 * 4096 + 2 * 4 * 4096 + 2 * 3 * 11008 + 2 * 2 * 4096
    assert held.activations == 4 * 512 * (32 * block + 8 * 4096) == 9_764_339_712
    assert held.logits == 512 * 32768 * 2
    assert held.total == 23_341_834_240


def test_float32_weights_under_autocast_are_held_twice_but_for_the_embedding():
    assert device_memory(FULL_7B_GPU).weights == 4 * 6_738_415_616 + 2 * (6_738_415_616 - 32000 * 4096)
    assert device_memory(FULL_7B_CPU).weights == 4 * 6_738_415_616


def test_full_tuning_in_float32_takes_sixteen_bytes_a_parameter_before_activations():
    held = device_memory(FULL_7B_CPU)
    assert held.weights + held.gradients + held.optimizer == 16 * 6_738_415_616


def test_pure_bfloat16_takes_eight():
    pure = Precision("bfloat16", "bfloat16", None, "because")
    held = device_memory(replace(FULL_7B_GPU, machine=Machine("cuda", "sdpa", pure)))
    assert held.weights + held.gradients + held.optimizer == 8 * 6_738_415_616


def test_off_cuda_the_logits_of_the_supervised_positions_are_held_eight_times_and_as_a_mask():
    assert device_memory(FULL_7B_CPU).logits == (4 * 512 // 4) * 32000 * (8 * 4 + 1)


def test_a_large_vocabulary_and_a_large_batch_are_scored_in_tiles_off_cuda():
    wide = replace(FULL_7B_CPU, dimensions=replace(LLAMA_7B, vocabulary=128_256))
    assert device_memory(with_training(wide, per_device_train_batch_size=4096)).logits == 4096 * 32768 * 33


def test_under_full_tuning_gradients_lie_in_the_holes_of_the_activations():
    many = with_training(FULL_7B_CPU, per_device_train_batch_size=64)
    held = device_memory(many)
    assert held.fragmentation == held.activations // 2 - held.gradients > 0


def test_each_thread_packs_matrices_of_its_own():
    with_more = replace(FULL_7B_CPU, machine=replace(FULL_7B_CPU.machine, threads=18))
    more = device_memory(with_more).libraries - device_memory(FULL_7B_CPU).libraries
    assert 16 * 11 * 2**20 < more < 16 * 12 * 2**20


def test_on_a_cpu_the_libraries_take_memory_and_the_plan_says_so():
    assert device_memory(FULL_7B_CPU).libraries == pytest.approx((14 + 2 * (3 + 9 * 32000 / 32768)) * 2**20)
    assert "libraries 37.6 MiB" in render_plan(plan_work(FULL_7B_CPU))
    assert "libraries" not in render_plan(plan_work(LORA_GPU))


def test_a_count_has_run_some_of_the_code_of_the_libraries():
    formulas = device_memory(FULL_7B_CPU)
    counted = formulas.counted({"activations": 5, "fragmentation": 7})
    assert (counted.activations, counted.fragmentation, counted.weights) == (5, 7, formulas.weights)
    assert formulas.libraries - counted.libraries == 3 * 2**20
    assert device_memory(LORA_GPU).counted({}).libraries == 0


def test_on_a_cpu_malloc_leaves_holes_between_the_tensors_of_an_adapter():
    on_a_cpu = replace(LORA_GPU, machine=FULL_7B_CPU.machine)
    held = device_memory(on_a_cpu)
    assert held.fragmentation == held.activations // 2
    assert "fragmentation" in render_plan(plan_work(on_a_cpu))
    assert device_memory(with_training(on_a_cpu, packing=True)).fragmentation > 0
    assert device_memory(with_training(on_a_cpu, padding_free=True)).fragmentation == 0
    assert device_memory(FULL_7B_CPU).fragmentation == device_memory(LORA_GPU).fragmentation == 0
    assert "fragmentation" not in render_plan(plan_work(LORA_GPU))


def test_on_cuda_the_logits_are_held_in_one_tile():
    assert device_memory(with_training(LORA_GPU, per_device_train_batch_size=4096)).logits == 4096 * 32768 * 2


def test_eager_attention_keeps_the_scores():
    eager = replace(LORA_GPU, machine=replace(LORA_GPU.machine, attention="eager"))
    scores = 4 * 32 * 32 * 512 * 512 * (4 + 2)
    assert activation_bytes(eager) - activation_bytes(LORA_GPU) == scores


def test_activation_checkpointing_keeps_the_inputs_of_the_blocks_and_one_block():
    block = 8 * 4096 + 2 * 4 * 4096 + 2 * 3 * 11008 + 2 * 2 * 4096
    checkpointed = with_training(LORA_GPU, activation_checkpointing=True)
    assert activation_bytes(checkpointed) == 4 * 512 * (32 * 2 * 4096 + block + 8 * 4096)


def test_a_pair_is_two_texts_of_the_batch():
    pairs = with_training(LORA_GPU, texts_in_row=2)
    assert activation_bytes(pairs) == 2 * activation_bytes(LORA_GPU)
    assert plan_work(pairs).positions_per_step == 2 * plan_work(LORA_GPU).positions_per_step
    assert plan_work(pairs).total_steps == plan_work(LORA_GPU).total_steps


def test_a_frozen_copy_holds_the_weights_once_more_and_nothing_else():
    one, two = (device_memory(with_training(LORA_GPU, frozen_copies=count)) for count in (0, 1))
    assert two.weights == one.weights + 2 * 6_738_415_616
    assert replace(two, weights=one.weights) == one


def test_a_head_of_one_label_has_no_logits_of_the_vocabulary():
    assert device_memory(with_training(FULL_7B_CPU, scores_vocabulary=False)).logits == 0


def test_virtual_tokens_are_positions_too():
    longer = replace(LORA_GPU, dimensions=replace(LORA_7B, virtual_tokens=8))
    assert activation_bytes(longer) * 512 == activation_bytes(LORA_GPU) * 520
    assert plan_work(longer).positions_per_step == 4 * 4 * 520


QUANTISED = [
    # 4.5 bits, 4.127 bits and 8 bits a weight: QLoRA's own numbers
    (4, False, 2**20 * 9 // 16),
    (4, True, 2**19 + 2**14 + 2**14 * 4 // 256),
    (8, False, 2**20 + 4 * 1024),
]


@pytest.mark.parametrize(("bits", "double", "expected"), QUANTISED)
def test_quantised_weights_are_held_with_their_scales(bits, double, expected):
    assert quantised_bytes(2**20, 1024, bits=bits, double=double) == expected


def test_what_is_not_quantised_stays_in_the_dtype_of_the_weights():
    linears = 6_476_005_376
    quantised = replace(LORA_7B, quantised_parameters=linears, quantised_bytes=linears * 9 // 16)
    made = plan_work(replace(LORA_GPU, dimensions=quantised))
    others = 6_738_415_616 - linears
    assert made.memory.weights == 2 * others + linears * 9 // 16 + 4 * 4_194_304
    assert made.memory.activations == device_memory(LORA_GPU).activations
    assert "quantised 6,476,005,376 of the base, in 3.39 GiB" in render_plan(made)


def test_a_prefix_goes_through_no_block_but_is_read_in_every_one():
    prefix = replace(LORA_GPU, dimensions=replace(LORA_7B, virtual_tokens=8, prefix_tokens=8))
    more = activation_bytes(prefix) - activation_bytes(LORA_GPU)
    assert more == 4 * 32 * 8 * 2 * 4096 * 2


OPTIMIZERS = {
    "adamw_torch": 8000,
    "adamw_torch_fused": 8000,
    "stable_adamw": 8000,
    "adamw_8bit": 2000,
    "adamw_bnb_8bit": 2000,
    "paged_adamw_8bit": 2000,
    "adamw_torch_4bit": 1000,
    "paged_adamw_32bit": 8000,
    "lion_32bit": 4000,
    "lion_8bit": 1000,
    "ademamix": 12000,
    "sgd": 0,
    "adagrad": 4000,
    "rmsprop": 4000,
    "adafactor": 80,
    "lomo": 8000,
}


@pytest.mark.parametrize(("optim", "expected"), OPTIMIZERS.items())
def test_the_optimizer_s_state_depends_on_its_name(optim, expected):
    thousand = replace(LLAMA_7B, trainable_parameters=1000, hidden_size=100)
    assert optimizer_bytes(optim, thousand, trained=4) == expected


def test_an_unknown_optimizer_is_counted_as_adamw_and_noted():
    (note,) = plan_work(with_training(LORA_GPU, optim="lomo")).notes
    assert note == "the memory of optim=lomo is not known here; counted as AdamW in float32"


# against measurement


class Kept:
    """A tensor for as long as the graph holds it; DoRA builds a graph that it does not use."""

    def __init__(self, tensor):
        self.tensor = tensor


def saved_bytes(model, batch, length, autocast, position_ids=None):
    """Bytes of the storages that autograd keeps after a forward pass of the blocks, parameters left out."""
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    kept = weakref.WeakSet()

    def pack(tensor):
        held = Kept(tensor)
        kept.add(held)
        return held

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    inputs = model.get_input_embeddings()(torch.randint(5, 90, (batch, length)))
    learns_prompt = getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False)
    prefix, prompt = None, model.get_prompt(batch) if learns_prompt else None
    if isinstance(prompt, torch.Tensor):
        inputs = torch.cat([prompt.to(inputs.dtype), inputs], dim=1)
    else:
        prefix = prompt
    casts = torch.autocast("cpu", dtype=torch.bfloat16) if autocast else contextlib.nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor), casts:
        output = base.base_model(
            inputs_embeds=inputs, position_ids=position_ids, past_key_values=prefix, use_cache=False
        )
    storages = {held.tensor.untyped_storage()._cdata: held.tensor.untyped_storage().nbytes() for held in kept}
    assert output is not None
    return sum(size for data, size in storages.items() if data not in own)


SMALL_LLAMA = {
    "model_type": "llama",
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 352,
    "vocab_size": 1000,
}
SMALL_GQA = {**SMALL_LLAMA, "num_key_value_heads": 1}
SMALL_BIGCODE = {
    "model_type": "gpt_bigcode",
    "n_embd": 128,
    "n_layer": 4,
    "n_head": 4,
    "vocab_size": 1000,
    "n_positions": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
METHODS = {
    "full": lambda: None,
    "lora": lambda: LoraConfig(task_type="CAUSAL_LM", r=8),
    "lora_dropout": lambda: LoraConfig(task_type="CAUSAL_LM", r=8, lora_dropout=0.1, target_modules="all-linear"),
    "dora": lambda: LoraConfig(task_type="CAUSAL_LM", r=8, use_dora=True),
    "dora_dropout": lambda: LoraConfig(task_type="CAUSAL_LM", r=8, use_dora=True, lora_dropout=0.1),
    "dora_everywhere": lambda: LoraConfig(task_type="CAUSAL_LM", r=8, use_dora=True, target_modules="all-linear"),
    "ia3": lambda: IA3Config(task_type="CAUSAL_LM"),
    "prompt": lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=8),
    "p_tuning": lambda: PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=8),
    "prefix": lambda: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=8),
}


@pytest.mark.parametrize("architecture", [SMALL_LLAMA, SMALL_GQA, SMALL_BIGCODE], ids=["llama", "gqa", "bigcode"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_activations_are_what_autograd_keeps_within_an_eighth(architecture, method, attention, half):
    config = AutoConfig.for_model(**architecture)
    dimensions = shapes.dimensions(build_empty(config), METHODS[method]())
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).train()
    if method != "full":
        model = get_peft_model(model, METHODS[method]())
    precision = FLOAT32
    if half:
        precision = FULL_GPU if method == "full" else ADAPTER_GPU
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.bfloat16()
    work = Work(dimensions, Rows(2, 2, 96), Training(512, 2), Machine("cpu", attention, precision))
    weights = dimensions.base_parameters * (2 if precision is ADAPTER_GPU else 4) + dimensions.adapter_parameters * 4
    copies = device_memory(work).weights - weights
    measured = saved_bytes(model, 2, 96, half)
    assert activation_bytes(work) + copies == pytest.approx(measured, rel=0.12)


@pytest.mark.parametrize("architecture", [SMALL_LLAMA, SMALL_BIGCODE], ids=["llama", "bigcode"])
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("flat", [False, True], ids=["packing", "padding_free"])
def test_the_mask_of_packed_documents_is_counted(architecture, method, attention, flat):
    """Documents of 32 tokens, three a row in two rows, or all of them in one."""
    config = AutoConfig.for_model(**architecture)
    dimensions = shapes.dimensions(build_empty(config), METHODS[method]())
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).train()
    if method != "full":
        model = get_peft_model(model, METHODS[method]())
    rows, width = (1, 192) if flat else (2, 96)
    positions = torch.arange(32).repeat(width // 32).expand(rows, width)
    # six rows of 32 tokens for padding_free, two of 96 for packing
    longest, batch = (32, 6) if flat else (96, 2)
    training = Training(longest, batch, packing=not flat, padding_free=flat)
    work = Work(dimensions, Rows(6, 192, longest), training, Machine("cpu", attention, FLOAT32))
    measured = saved_bytes(model, rows, width, False, position_ids=positions)
    assert activation_bytes(work) == pytest.approx(measured, rel=0.12)
    without = replace(work, machine=Machine("cpu", "flash_attention_2", FLOAT32))
    assert attention_mask_bytes(without) == 0


# steps

STEPS = [
    # rows, batch, accumulation, epochs, max_steps, drop_last → batches, steps an epoch, total
    (10, 4, 4, 2.5, -1, False, (3, 1, 3)),
    (10, 4, 1, 2.5, -1, False, (3, 3, 8)),
    (10, 4, 2, 1.0, -1, False, (3, 2, 2)),
    (10, 4, 1, 1.0, -1, True, (2, 2, 2)),
    (17, 3, 4, 0.3, -1, False, (6, 2, 1)),
    (17, 3, 4, 3.0, 5, False, (6, 2, 5)),
    (2, 8, 4, 3.0, -1, False, (1, 1, 3)),
]


@pytest.mark.parametrize(("rows", "batch", "accumulation", "epochs", "max_steps", "drop_last", "expected"), STEPS)
def test_steps_are_those_of_the_trainer(tmp_path, rows, batch, accumulation, epochs, max_steps, drop_last, expected):
    training = Training(
        max_length=8,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=epochs,
        max_steps=max_steps,
        dataloader_drop_last=drop_last,
    )
    counted = count_steps(rows, training)
    assert (counted.batches_per_epoch, counted.steps_per_epoch, counted.total_steps) == expected
    arguments = TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=epochs,
        max_steps=max_steps,
        dataloader_drop_last=drop_last,
        use_cpu=True,
        report_to=[],
    )
    data = Dataset.from_dict({"input_ids": [[1, 2, 3]] * rows, "labels": [[1, 2, 3]] * rows})
    trainer = Trainer(AutoModelForCausalLM.from_config(AutoConfig.for_model(**TINY)), arguments, train_dataset=data)
    trainer.train()
    assert trainer.state.global_step == trainer.state.max_steps == expected[2]


TINY = {
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "vocab_size": 16,
}


# the plan


def test_a_plan_of_lora():
    made = plan_work(LORA_GPU)
    assert (made.rows, made.steps_per_epoch, made.total_steps) == (1000, 63, 189)
    assert (made.tokens_per_epoch, made.tokens_estimated, made.positions_per_step) == (200_000, False, 8192)
    assert made.checkpoint_bytes == 4 * 4_194_304 + 8 * 4_194_304
    assert made.notes == ()


def test_rows_longer_than_max_length_count_as_cut():
    assert plan_work(with_training(LORA_GPU, max_length=100)).positions_per_step == 1600


def test_packed_rows_are_full_ones():
    made = plan_work(with_training(LORA_GPU, packing=True, max_length=1024))
    assert (made.rows, made.steps_per_epoch, made.positions_per_step) == (196, 13, 16 * 1024)
    assert made.notes == ("packing is counted as perfect: the real number of rows and steps is a little higher",)


def test_packing_that_costs_more_than_it_saves_is_noted():
    rows = Rows(rows=1000, tokens=35_000, longest=70)
    small = replace(LLAMA_7B, base_parameters=800_000, hidden_size=64, layers=8, heads=4, head_dim=16, vocabulary=4000)
    work = with_training(replace(FULL_7B_CPU, dimensions=small, rows=rows), packing=True, max_length=256)
    # 2 x 36,000 of a block's parameters, and 256 for each of 256 positions or of 35
    assert packing_slowdown(work) == pytest.approx((72_000 + 256 * 256) / (72_000 + 256 * 35))
    assert any(
        note.startswith("training.packing: sdpa scores every position with the 256 of its row, and documents have 35: ")
        for note in plan_work(work).notes
    )
    flash = replace(work, machine=Machine("cuda", "flash_attention_2", FULL_GPU))
    assert packing_slowdown(flash) == packing_slowdown(with_training(work, packing=False)) == 1
    assert packing_slowdown(with_training(LORA_GPU, packing=True)) < 1.1


def test_rows_beyond_the_model_s_positions_are_noted():
    long = replace(with_training(LORA_GPU, max_length=8192), rows=replace(ROWS, longest=6000))
    assert plan_work(long).notes == ("the longest row takes 6,000 positions, but the model sees 4,096",)


def test_fewer_rows_than_a_batch_are_noted():
    assert plan_work(replace(LORA_GPU, rows=replace(ROWS, rows=3))).notes == (
        "training.per_device_train_batch_size is 4, with 3 rows",
    )


def test_a_plan_goes_through_json():
    values = json.loads(json.dumps(asdict(plan_work(LORA_GPU))))
    assert values["memory"]["weights"] == 13_493_608_448
    assert values["total"] == 23_341_834_240
    assert values["work"]["machine"]["precision"]["autocast"] == "bfloat16"


# advice


def test_a_plan_is_a_table():
    assert render_plan(plan_work(LORA_GPU)).splitlines() == [
        "parameters  base 6,738,415,616, adapter 4,194,304",
        "            trainable 4,194,304 (0.0622 %)",
        "precision   bfloat16 weights, float32 trained, bfloat16 autocast; sdpa attention on cuda",
        "            because",
        "memory      21.74 GiB, estimated",
        "            weights 12.57 GiB, gradients 16.0 MiB, optimizer 32.0 MiB, activations 9.09 GiB, logits 32.0 MiB",
        "steps       189 (3 epochs, 63 an epoch, 4 rows x 4 accumulated)",
        "tokens      200,000 an epoch",
        "            at most 8,192 positions a step, padding included",
        "checkpoint  48.0 MiB",
    ]


def test_estimated_tokens_say_so():
    estimated = replace(LORA_GPU, rows=replace(ROWS, estimated=True))
    assert "tokens      ≈ 200,000 an epoch, estimated from characters" in render_plan(plan_work(estimated))


# several processes

BLOCK_7B = (6_738_415_616 - 2 * 32000 * 4096) // 32
HEAD_7B = 32000 * 4096


def shared(work, **sharing):
    return device_memory(replace(work, sharing=Sharing(**sharing)))


def test_full_shard_divides_what_is_kept_and_adds_what_is_whole_for_a_moment():
    held = shared(FULL_7B_GPU, processes=8, sharded_over=8)
    assert held.weights == 4 * 6_738_415_616 // 8 + 2 * (2 * BLOCK_7B + HEAD_7B)
    assert held.gradients == 4 * 6_738_415_616 // 8 + 2 * 2 * BLOCK_7B
    assert held.optimizer == 8 * 6_738_415_616 // 8
    assert held.activations == device_memory(FULL_7B_GPU).activations


def test_grad_op_keeps_all_weights_from_forward_to_backward():
    held = shared(FULL_7B_GPU, processes=8, sharded_over=8, reshard=False)
    assert held.weights == 4 * 6_738_415_616 // 8 + 2 * 6_738_415_616


def test_offload_leaves_the_device_what_is_whole_for_a_moment():
    held = shared(FULL_7B_GPU, processes=8, sharded_over=8, cpu_offload=True)
    assert (held.weights, held.optimizer) == (2 * (2 * BLOCK_7B + HEAD_7B), 0)
    assert held.gradients == 2 * 2 * BLOCK_7B


def test_hybrid_shards_within_a_machine_only():
    assert shared(FULL_7B_GPU, processes=16, sharded_over=8) == shared(FULL_7B_GPU, processes=8, sharded_over=8)


def test_ddp_keeps_everything_and_buckets_of_gradients():
    alone, held = device_memory(FULL_7B_GPU), shared(FULL_7B_GPU, processes=8)
    assert (held.weights, held.optimizer) == (alone.weights, alone.optimizer)
    assert held.gradients == 2 * alone.gradients


def test_sharded_adapters_have_gradients_of_their_own_size():
    held = shared(LORA_GPU, processes=4, sharded_over=4)
    assert held.gradients == 4 * 4_194_304 // 4 + 2 * 4_194_304 // 32 * 2


@pytest.mark.parametrize(
    ("rows", "processes", "drop_last"), [(32, 2, False), (33, 2, False), (35, 3, False), (33, 2, True), (31, 4, True)]
)
def test_steps_of_several_processes_are_those_of_accelerate(rows, processes, drop_last):
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler, SequentialSampler

    sampler = BatchSampler(SequentialSampler(range(rows)), 4, drop_last)
    expected = len(BatchSamplerShard(sampler, processes, 0))
    training = Training(512, 4, dataloader_drop_last=drop_last)
    assert count_steps(rows, training, processes).batches_per_epoch == expected


@pytest.mark.parametrize(
    ("rows", "processes", "settings", "expected"),
    [
        (33, 2, {}, "each epoch trains 7 rows more than there are: accelerate fills the last batches of 2 processes"),
        (31, 2, {}, "each epoch trains 1 row more than there are"),
        (32, 2, {}, None),
        (33, 1, {}, None),
        (33, 2, {"max_steps": 1}, None),
        # 391 packs, if they were perfect
        (33, 2, {"packing": True}, "packing is counted as perfect"),
        (33, 2, {"dataloader_drop_last": True}, "training.dataloader_drop_last leaves 1 row out of each epoch"),
        (35, 1, {"dataloader_drop_last": True}, "training.dataloader_drop_last leaves 3 rows out of each epoch"),
        (32, 1, {"dataloader_drop_last": True}, None),
    ],
)
def test_rows_that_an_epoch_repeats_or_leaves_out_are_counted(rows, processes, settings, expected):
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler, SequentialSampler

    work = replace(LORA_GPU, rows=replace(ROWS, rows=rows), sharing=Sharing(processes))
    notes = plan_work(with_training(work, per_device_train_batch_size=4, **settings)).notes
    assert [note for note in notes if note.startswith(expected or "nothing")] == list(notes)
    assert len(notes) == (expected is not None)
    if expected is None or "packing" in settings:
        return
    # that is what accelerate does
    sampler = BatchSampler(SequentialSampler(range(rows)), 4, settings.get("dataloader_drop_last", False))
    shards = [BatchSamplerShard(sampler, processes, number) for number in range(processes)]
    beyond = sum(len(batch) for shard in shards for batch in shard) - rows
    assert f" {abs(beyond)} row" in expected


def test_the_plan_says_which_devices_it_is_for():
    made = plan_work(replace(FULL_7B_GPU, sharing=Sharing(8, 8)))
    text = render_plan(made)
    assert "on each of 8 devices, sharded over 8, estimated" in text
    assert "4 rows x 4 accumulated x 8 processes" in text
    assert made.checkpoint_bytes == 12 * 6_738_415_616
    assert made.positions_per_step == 8 * 4 * 4 * 512
