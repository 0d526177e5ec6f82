"""What fmstune says to fields that do not go together, trackers and callbacks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.bad_inputs.cases import ROW, ROWS, Case, assert_answered, case, wrong_inputs

pytestmark = pytest.mark.sampled(20)

TOGETHER = [
    case(
        "peft=prompt_tuning training.packing=true",
        "training.packing lets documents with virtual tokens (PromptTuning) see each other; …",
    ),
    case(
        "peft=p_tuning training.packing=true",
        "training.packing lets documents with … (PromptEncoder) see each other; set …",
    ),
    case(
        "peft=prefix_tuning training.packing=true",
        "training.packing lets documents with … (PrefixTuning) see each other; …",
    ),
    case(
        "peft=prefix_tuning training.activation_checkpointing=true",
        "training.activation_checkpointing drops the keys and values that PrefixTuning learns; set it to false",
    ),
    case(
        "peft=p_tuning training.eval_strategy=epoch training.load_best_model_at_end=true",
        "training.load_best_model_at_end: a checkpoint of PromptEncoder holds the virtual tokens without the network …",
    ),
    case(
        "peft=prefix_tuning peft.prefix_projection=true peft.encoder_hidden_size=8 training.eval_strategy=epoch "
        "training.load_best_model_at_end=true",
        "training.load_best_model_at_end: a checkpoint of PrefixTuning holds the virtual tokens without the network …",
    ),
    case(
        "peft=lora_plus peft.loraplus_lr_ratio=0.5",
        "peft.loraplus_lr_ratio must be at least 1 and finite (the …), got 0.5",
    ),
    case(
        "peft=ia3 peft.loraplus_lr_ratio=2",
        "peft.loraplus_lr_ratio is a setting of peft.LoraConfig, and the method is peft.IA3Config; …",
    ),
    case(
        "peft=lora_plus training.optim=galore_adamw training.optim_target_modules=[q_proj]",
        "training.optim=galore_adamw needs the package galore-torch; …",
        "training.optim=galore_adamw groups the parameters itself, and so does peft.loraplus_lr_ratio; choose one",
    ),
    case("training.learning_rate=atuo", "training.learning_rate must be a number or auto, got 'atuo'"),
    case(
        "training.usual_learning_rate=1e-3",
        "training.usual_learning_rate is where training.learning_rate=auto looks; set that to auto, or leave this out",
    ),
    case(
        "training.learning_rate=auto training.usual_learning_rate=20",
        "training.usual_learning_rate must be a number above 0 and below 10, got 20",
    ),
    case(
        "training.learning_rate=auto launcher=slurm launcher.num_processes=2",
        "training.learning_rate=auto probes before a job is queued, and launcher.slurm trains elsewhere; give a …",
    ),
    case(
        "training.learning_rate=auto launcher=ddp launcher.device=cpu launcher.num_machines=2 launcher.num_processes=2 "
        "launcher.main_process_ip=localhost output_dir=run",
        "training.learning_rate=auto probes on one machine, and launcher.num_machines=2; give a number",
    ),
    case(
        "training.learning_rate=auto training.lr_scheduler_type=reduce_lr_on_plateau training.eval_strategy=epoch",
        "training.learning_rate=auto cannot try training.lr_scheduler_type=reduce_lr_on_plateau in short …",
    ),
    case(
        "training.learning_rate=auto training.lr_scheduler_type=cosine_with_min_lr "
        "'training.lr_scheduler_kwargs={min_lr: 1e-6}'",
        "training.lr_scheduler_kwargs: min_lr does not fit a learning rate of auto; give min_lr_rate, a share of it",
    ),
    case(
        "training.learning_rate=auto data.streaming=true data.eval=null training.max_steps=100",
        "training.learning_rate=auto measures on held-out rows; set data.eval or data.eval_fraction",
    ),
    case(
        "training.learning_rate=auto training.max_steps=20",
        "training.learning_rate=auto: a run of 20 steps is too short for probes, which need 40; give a number",
    ),
    case("peft=ia3 peft.feedforward_modules=[down_prj]", "peft.feedforward_modules: no module is named 'down_prj'; …"),
    case("peft=prompt_tuning training.padding_free=true", "training.padding_free lets documents …; set …=false"),
    case(
        "launcher.device=cpu model.attention=flash_attention_2",
        "model.attention=flash_attention_2 needs a CUDA device, and launcher.device=cpu",
    ),
    case(
        "launcher.device=cpu training.fp16=true", "training.fp16 needs an accelerator, and launcher.device=cpu; set …"
    ),
    case("launcher.device=cpu training.activation_offloading=true", "training.activation_offloading …"),
    case(
        "training.fp16=true training.bf16=true",
        "training.bf16 and training.fp16 are both true; set one of them to false or null",
    ),
    case("model.dtype=float16", "model.dtype is float16, with which full tuning fails: …; set it to auto, …"),
    case("launcher.device=mps", "launcher.device=mps is not available here (found …)"),
    case("launcher.num_processes=2", "launcher.num_processes=2 needs a launcher of several processes; choose …"),
    case("launcher=ddp launcher.device=cpu", "launcher.num_processes must be given where no GPU is found, such as …"),
    case(
        "launcher=fsdp launcher.device=cpu launcher.num_processes=3 launcher.num_machines=2",
        "launcher.num_processes=3 is the number of all processes, and launcher.num_machines=2 does not divide it; …",
        "output_dir must be given with several machines: a folder that all of them share",
        "launcher.main_process_ip must be given with several machines: the address of machine 0",
    ),
    case(
        "launcher=fsdp1 launcher.device=cpu launcher.num_processes=2",
        "launcher.device=cpu: only FSDP2 can be rehearsed on the CPU; choose launcher=fsdp",
    ),
    case(
        "launcher=fsdp launcher.device=cpu launcher.num_processes=2 model.layer_cls=LlamaDecodrLayer",
        "model.layer_cls=LlamaDecodrLayer: the model has no module of this class; did you mean 'LlamaDecoderLayer'?; …",
    ),
    case(
        "launcher=slurm launcher.slurm.time=3600 launcher.slurm.gpus_per_node=all launcher.slurm.signal=TERM "
        '\'launcher.slurm.partition="a b"\' \'launcher.slurm.sbatch=["--nodes=3","-x"]\' \'launcher.slurm.setup=[""]\' '
        "launcher.machine_rank=1 training.save_only_model=true",
        "launcher.slurm.partition must be one word without quotes, got 'a b'",
        'launcher.slurm.time must be like "4:00:00" or "1-12" (days-hours), in quotes in a YAML file, got \'3600\'',
        "launcher.slurm.gpus_per_node must be a number or TYPE:NUMBER, got 'all'",
        "launcher.slurm.signal must be USR1 or USR2 and the seconds before the time limit, …, got 'TERM'",
        "launcher.num_processes must be given where launcher.slurm.gpus_per_node asks for no GPU, such as …",
        "launcher.machine_rank: Slurm numbers the nodes and chooses the first; leave it out",
        "launcher.slurm.sbatch: --nodes: set launcher.num_machines",
        "launcher.slurm.sbatch must hold options such as --exclusive or --mail-type=END, got '-x'",
        "launcher.slurm.setup must hold lines of shell, one text for each, got ''",
        "training.save_only_model leaves out the state to resume a requeued job from; set it to false, or …",
    ),
    case(
        "launcher.slurm.gpus_per_node=2 launcher.slurm.partion=gpu",
        "launcher.slurm.partion: unknown field; did you mean 'partition'?",
    ),
    case(
        "launcher.slurm.gpus_per_node=2",
        "launcher.slurm.gpus_per_node: launcher.strategy=single uses one GPU; choose fsdp or ddp, or ask for 1",
    ),
    case(
        "hydra/launcher=submitit_slurm seed=1",
        "hydra/launcher=submitit_slurm runs the points of a sweep; add -m, or choose launcher=slurm for one job",
    ),
    case("-m hydra/launcher=submitit seed=1,2", "hydra/launcher=submitit: …"),
    case("launcher.config_file=no.yaml", "launcher.config_file: no.yaml cannot be read (No such file …); give an …"),
    case(
        "launcher=ddp launcher.config_file=a.yaml",
        "launcher.config_file: a.yaml is for launcher=fsdp; choose it, or another file",
        a_yaml="distributed_type: FSDP\n",
    ),
    case(
        f"{ROWS} training.eval_strategy=epoch",
        "training.eval_strategy=epoch needs held-out rows; set …",
        rows_jsonl=ROW,
    ),
    case(
        "data.eval_fraction=0.5", "data.eval and data.eval_fraction both say which rows are held out; set one of them"
    ),
    case(
        "training.load_best_model_at_end=true training.eval_strategy=no",
        "training.load_best_model_at_end needs training.eval_strategy=epoch …",
    ),
    case(
        "training.load_best_model_at_end=true training.eval_strategy=steps",
        "training.load_best_model_at_end needs save_strategy and eval_strategy to agree, got epoch and steps",
    ),
    case(
        "training.save_strategy=best training.eval_strategy=steps",
        "training.save_strategy=best needs training.metric_for_best_model, such as loss",
    ),
    case(
        "training.metric_for_best_model=entropy training.eval_strategy=epoch",
        "training.metric_for_best_model=entropy needs training.greater_is_better: true, or false if less is better",
    ),
    case(
        "training.metric_for_best_model=macro_f1 training.eval_strategy=epoch",
        "training.metric_for_best_model=macro_f1 is measured on generated answers; set evaluation.sample",
    ),
    case(
        f"{ROWS} data.eval=held.jsonl compare_by=tuned.macro_f1",
        "compare_by=tuned.macro_f1 needs held-out rows whose answers are labels, up to 50 different ones; most of …",
        rows_jsonl=ROW,
        held_jsonl=ROW.replace("question", "another"),
    ),
    case(
        "training.eval_on_start=true training.eval_strategy=no",
        "training.eval_on_start=true needs training.eval_strategy=epoch or steps; …",
    ),
    case(
        "training.dataloader_drop_last=true training.per_device_train_batch_size=4 data.max_rows=3",
        "training.dataloader_drop_last=true leaves no batch of 3 rows: training.per_device_train_batch_size=4; lower …",
    ),
    case(
        "debug=nan training.torch_compile=true",
        "training.torch_compile=true leaves out the hooks by which debug=nan looks at modules; add …=false",
    ),
    case(
        "debug=profile training.max_steps=4",
        "training.max_steps=4 ends before debug=profile has seen its steps; set training.max_steps=5 or more",
    ),
    case(
        "debug=overfit data.max_rows=96",
        "data.max_rows: debug=overfit trains on one batch, and 96 rows are 24; set data.max_rows=4",
    ),
    case(
        "debug=overfit training.per_device_train_batch_size=3",
        "data.max_rows: debug=overfit trains on one batch, and 4 rows are 2; set data.max_rows=3",
    ),
    case(
        "debug=overfit data.streaming=true",
        "data.streaming=true: debug=overfit takes one batch at all steps; add data.streaming=false",
    ),
    case(
        "training.save_strategy=best training.eval_strategy=no",
        "training.save_strategy=best needs training.eval_strategy=epoch or steps, …",
        "training.save_strategy=best needs training.metric_for_best_model, such as loss",
    ),
    case(
        "training.metric_for_best_model=los",
        "training.metric_for_best_model must be one of loss, …did you mean 'loss'?",
    ),
    case("training.use_liger_kernel=true", "training.use_liger_kernel: model.kernels=liger sets it"),
    case("peft=prompt_tuning training.eval_packing=true", "training.eval_packing lets documents …; set …=false"),
    case("training.packing=true training.packing_strategy=wrapped", "training.packing_strategy=wrapped cuts …"),
    case("training.packing_strategy=bfd_splt", "training.packing_strategy must be one of bfd, …; did you mean …"),
    case(
        "training.padding_free=true training.eval_packing=true",
        "training.padding_free and training.eval_packing need training.packing=true; set it, or one of them to false",
    ),
    case("training.train_sampling_strategy=by_length", "training.train_sampling_strategy must be one of random, …"),
    case("training.optim=galore_adamw", "training.optim=galore_adamw needs the package galore-torch; install it, or …"),
    case("training.optim=apollo_adamw", "training.optim=apollo_adamw needs the package apollo-torch; install it, or …"),
    case("training.optim=adalomo", "training.optim=adalomo needs the package lomo-optim; install it, or choose …"),
    case(
        "peft=lora peft.eva_config=3 'peft.arrow_config={q_proj: 4}'",
        "peft.eva_config must be a mapping of fields of EvaConfig: …",
        "peft.arrow_config must be a mapping of fields of ArrowConfig: …'q_proj'",
    ),
    case(
        "training.optim=adamw_bnb_8bit",
        "training.optim=adamw_bnb_8bit needs a CUDA device, and the device is cpu; set adamw_torch_fused, …",
    ),
    case(
        "training.resume=nowhere", "training.resume: nowhere is not a checkpoint folder (no trainer_state.json); give …"
    ),
    case(
        "training.resume=c",
        "training.resume: c is not a checkpoint folder of this peft method (no model*.safetensors); give …",
        c__trainer_state_json="{}",
    ),
    case(
        "training.resume=c training.max_steps=5",
        "training.resume: c has no optimizer.pt; give a checkpoint that was saved without training.save_only_model",
        "training.resume: c has no scheduler.pt; give a checkpoint that was saved without training.save_only_model",
        "training.resume: c is at step 5, so training.max_steps=5 leaves nothing to train",
        c__trainer_state_json='{"global_step": 5}',
        c__model_safetensors="x",
    ),
    Case(
        "training.resume=c",
        ("training.resume: c/trainer_state.json is damaged; give an earlier checkpoint",),
        {"c/trainer_state.json": "{}", "c/model.safetensors": "x", "c/optimizer.pt": "x", "c/scheduler.pt": "x"},
    ),
]


TRACKING = [
    case("tracking=[aim,tensorbord]", "tracking=tensorbord: no such choice; did you mean 'tensorboard'? (aim, …)"),
    case("tracking=aim tracking.aim.rebo=x", "tracking.aim.rebo: unknown field; did you mean 'repo'?"),
    case(
        "tracking.wandb.mode=sometimes tracking.aim=here",
        "tracking.wandb.mode must be one of online, offline; got 'sometimes'",
        "tracking.aim is a group of fields, got 'here'; set them as tracking.aim={FIELD: VALUE}",
    ),
    case(
        "tracking=[aim,mlflow] tracking.aim.repo=aim:/server tracking.mlflow.tracking_uri=https://me:secret@host",
        "tracking.aim.repo: a server is written aim://HOST:PORT, got 'aim:/server'",
        "tracking.mlflow.tracking_uri holds a password, and secrets stay out of a job; set it to null, and …",
    ),
    case(
        "training.trackers=aim training.aim_repo=. training.aim_remote_server_ip=10.0.0.1",
        "training.trackers: choose several at once, such as tracking=[aim,tensorboard]",
        "training.aim_repo: it is tracking.aim.repo now",
        "training.aim_remote_server_ip: give the server as tracking.aim.repo=aim://HOST:PORT",
    ),
]


CALLBACKS = [
    case(
        "callbacks=early_stopping callbacks.early_stopping.patience=0 callbacks.early_stopping.threshold=-1 "
        "callbacks.stop_when=[]",
        "callbacks.early_stopping.patience must be at least 1, got 0",
        "callbacks.early_stopping.threshold must be at least 0, got -1",
        "callbacks.early_stopping.metric=eval_loss is measured by evaluating while training; set …",
        "callbacks.stop_when has no condition; write one, such as loss < 0.1, or set it to null",
    ),
    case(
        "callbacks=early_stopping callbacks.early_stopping.metric=los training.eval_strategy=epoch",
        "callbacks.early_stopping.metric=los is never logged by this job, which logs loss, …; did you mean 'loss'?",
    ),
    case(
        '\'callbacks.stop_when=["los < 1 or eval_loss < 1", "loss", "loss <", "1 < 2", "loss.real > 1", '
        '"__import__(loss) > 1", "mean(loss, 0) < 1"]\'',
        "callbacks.stop_when='los < 1 or eval_loss < 1': los is never logged by this job, …; did you mean 'loss'?",
        "callbacks.stop_when='los < 1 or eval_loss < 1': eval_loss is measured by evaluating while training; …",
        "callbacks.stop_when='loss': loss is a number; compare it, as in loss < 0.5",
        "callbacks.stop_when='loss <': it cannot be read (invalid syntax); a condition is made of metrics, numbers, …",
        "callbacks.stop_when='1 < 2': no metric stands in it, so that it would be always true or never; …",
        "callbacks.stop_when='loss.real > 1': loss.real has no place in a condition; …",
        "callbacks.stop_when='__import__(loss) > 1': __import__(loss) has no place in a condition; …",
        "callbacks.stop_when='mean(loss, 0) < 1': mean(loss, 0): the function takes METRIC or METRIC, COUNT, …",
    ),
    case(
        "'callbacks.stop_when=\"eval_loss < 1\"' 'data.eval={a: package:complaints/held_out.jsonl}' "
        "training.eval_strategy=epoch",
        "callbacks.stop_when='eval_loss < 1': eval_loss is never logged …, eval_a_loss, …; did you mean 'eval_a_loss'?",
    ),
    case(
        "sweep.stop_losers=true sweep.risk=0 sweep.warm_up=2 sweep.patience=0 data.eval=null",
        "sweep.patience must be at least 1, got 0",
        "sweep.risk must be above 0 and below 1, got 0",
        "sweep.warm_up must be from 0 to 1, got 2",
        "sweep.stop_losers=true compares points on held-out rows; set data.eval or data.eval_fraction",
        "sweep.stop_losers=true looks at points at each evaluation; set training.eval_strategy=steps",
    ),
    case(
        "sweep.stop_losers=true training.eval_strategy=epoch compare_by=tuned.exact_match",
        "sweep.stop_losers=true compares points by their held-out loss, and this sweep by tuned.exact_match; "
        "set compare_by=tuned.eval_loss",
    ),
    case("callbacks=early_stoping", "callbacks=early_stoping: no such choice; did you mean 'early_stopping'? (…)"),
]

CASES = [*TOGETHER, *TRACKING, *CALLBACKS]


@wrong_inputs(CASES)
def test_what_cannot_be_trained_is_answered_by_one_message_and_leaves_nothing(
    wrong: Case, fmstune: Callable[..., Any], tmp_path: Path
) -> None:
    assert_answered(wrong, fmstune, tmp_path)
