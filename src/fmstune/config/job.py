"""The dataclasses of the job: all that a run is, as typed data that a file can hold; `freeze` makes and checks one."""

from dataclasses import dataclass, field, replace
from typing import Any

from fmstune.config import choices

FULL = "fmstune.models.adapters.full"
"""The `_target_` of `peft=full`."""
LORA = "peft.LoraConfig"
"""The `_target_` of `peft=lora` and of its relatives."""
LORAPLUS_LR_RATIO = "loraplus_lr_ratio"
"""The one key of a peft group that PEFT has no field for: LoRA+'s rate of B by that of A, PEFT's name for it."""
SFT = "fmstune.training.objectives.sft.Sft"
"""The `_target_` of `objective=sft`, and of all jobs that were frozen before there was a choice."""
BUILT_IN_CALLBACKS = ("early_stopping", "stop_when")
"""Keys of the group `callbacks` that are fmstune's own; every other key names a user's callback."""


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """Fields of `transformers.BitsAndBytesConfig`, under their own names."""

    load_in_4bit: bool = False
    """QLoRA: the linear layers of the frozen base in 4 bits."""
    load_in_8bit: bool = False
    """LLM.int8(): the linear layers of the frozen base in 8 bits."""
    bnb_4bit_quant_type: choices.QuantType = choices.QuantType.nf4
    """The 4-bit numbers; transformers' own default is fp4."""
    bnb_4bit_use_double_quant: bool = False
    """Quantise the scales of the 4-bit blocks too."""
    bnb_4bit_compute_dtype: choices.Dtype = choices.Dtype.auto
    """Dtype of the products with 4-bit weights; `auto` is the run's autocast, else the dtype of the other weights."""
    llm_int8_threshold: float = 6.0
    """Inputs beyond this are multiplied in 16 bits, with 8-bit weights."""


@dataclass(frozen=True, kw_only=True)
class Model:
    path: str
    """Folder, hub id, or `package:NAME` for a model that ships with fmstune."""
    revision: str | None = None
    """Hub revision (branch, tag or commit) of model and tokenizer."""
    tokenizer: str | None = None
    """Folder or hub id of the tokenizer; null takes the one of `path`."""
    dtype: choices.Dtype = choices.Dtype.auto
    """Dtype of the weights; `fmstune check` shows which one `auto` chose."""
    attention: choices.Attention = choices.Attention.auto
    """Attention kernel."""
    kernels: choices.Kernels = choices.Kernels.none
    """Fused kernels for norms, rotary positions and gated layers: `liger` on a GPU, for the architectures it names."""
    backend: choices.Backend = choices.Backend.transformers
    """Whose blocks it is made of: `fms` takes those of ibm-fms, for Llama and GPTBigCode; files stay the same."""
    architecture: dict[str, Any] | None = None
    """Values of the transformers configuration (with `model_type`), so that the model is checked offline."""
    layer_cls: str | None = None
    """Class of one transformer block, the unit that FSDP wraps."""
    lora_targets: Any = None
    """Modules that LoRA adapts in this architecture when nothing else is asked; null takes PEFT's own list."""
    special_tokens: dict[str, Any] = field(default_factory=dict)
    """Special tokens to set or add, by transformers' names, such as `pad_token: "<pad>"`."""
    chat_template: str | None = None
    """Jinja file, `package:chatml.jinja` or `trl:NAME`, in place of the tokenizer's own chat template; it is saved."""
    quantization: Quantization | None = None
    """A base in 4 or 8 bits under an adapter, by bitsandbytes, on a CUDA device; null leaves it as `dtype` says."""
    adapter: str | None = None
    """Folder or hub id of an existing adapter to train further."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One of several named sources of `data.train` or `data.eval`."""

    path: Any
    """File, glob, folder, a list of these, or a hub id."""
    format: dict[str, Any] | None = None
    """Like `data.format`, which is taken when this is null."""
    weight: float | None = None
    """Share of this source in training, relative to the others; needs not sum to one. All sources have one, or none."""
    max_rows: int | None = None
    """Read at most this many of its rows; null reads all."""


@dataclass(frozen=True, kw_only=True)
class Data:
    format: dict[str, Any]
    """`_target_` and arguments of the function that turns a row into segments (see `fmstune.data.formats`).

    `data.text_field=x` and `data.response_template=x` set the arguments of these names.
    """
    train: Any
    """File, glob, folder, a list of these, or a hub id (its train split); or several by name: `{a: a.jsonl}`."""
    eval: Any = None
    """Held-out rows, given like `train`; a hub id means its validation split, else its test split."""
    eval_fraction: float = 0.0
    """Share of the training rows, of each source, to hold out when `eval` is null; drawn with `seed`."""
    max_rows: int | None = None
    """Read at most this many training rows of each source; null reads all."""
    max_length: int = 4096
    """Tokens in a row at most, end-of-sequence included."""
    over_length: choices.OverLength = choices.OverLength.truncate
    """What to do with longer rows."""
    untrainable: choices.Untrainable = choices.Untrainable.error
    """What to do with rows that would train on nothing."""
    overlap: choices.Overlap = choices.Overlap.keep
    """What to do with training rows that are also held out; they are counted and reported in any case."""
    stopping_strategy: choices.StoppingStrategy = choices.StoppingStrategy.all_exhausted
    """With weights: repeat rows of the sources that run out, or end when the first one has run out."""
    prefix_sharing: bool | choices.Auto = False
    """Bring rows that begin alike into one batch, and compute the beginning once; `auto`: where that saves a tenth."""
    quarantine: str | None = None
    """File that names training rows to leave out, by source and number, as `fmstune rows --quarantine` writes it."""
    row_losses: bool = True
    """Keep the loss of each training row by epoch in `rows.parquet`, for `fmstune rows`; streamed rows have none."""
    streaming: bool = False
    """Read the training rows while training, for sets larger than memory or disk; needs `training.max_steps`."""
    buffer_size: int = 1000
    """Rows that streaming shuffles among; 1 keeps the order of the files."""


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """Options of `sbatch`, under their own names; null leaves one out, and the cluster's default holds."""

    partition: str | None = None
    """Partition to run in."""
    account: str | None = None
    """Account to charge."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that the nodes must have."""
    time: str | None = None
    """Time limit, such as "4:00:00" or "1-12"; in quotes in YAML, which would read 4:00:00 as a number."""
    gpus_per_node: str | None = None
    """GPUs of each node, a number or `TYPE:NUMBER`."""
    cpus_per_task: int | None = None
    """Cores of each process."""
    mem: str | None = None
    """Memory of each node, such as 64G."""
    signal: str = "USR1@120"
    """Notice before the time limit: the signal (USR1 or USR2) and how many seconds before."""
    requeue: bool = True
    """Requeue the job after a preemption, a lost node or the time limit; it resumes from its last checkpoint."""
    sbatch: list[str] = field(default_factory=list)
    """Further options, each a text such as `--exclusive` or `--mail-type=END`."""
    setup: list[str] = field(default_factory=list)
    """Lines of shell before the processes start, such as `module load cuda`."""


@dataclass(frozen=True, kw_only=True)
class Launcher:
    device: choices.Device = choices.Device.auto
    """Device of the processes; `cpu` with `fsdp` is the rehearsal, really sharded over gloo."""
    device_gib: float | None = None
    """Memory of one device in GiB, to plan for one that is not here; null takes the device's own."""
    device_tflops: float | None = None
    """Peak of one device in dense TFLOP/s, in the dtype that the run computes in; null takes that of a known card."""
    price_per_hour: float | None = None
    """Price of one device for an hour, in any currency, to plan the cost of the run."""
    threads: int | None = None
    """CPU threads of a process; null takes OMP_NUM_THREADS, else this machine's cores, shared out."""
    strategy: choices.Strategy = choices.Strategy.single
    """What the processes share: nothing (`single`), gradients (`ddp`), or all weights too (`fsdp`)."""
    num_processes: int | None = None
    """Processes on all machines together; null takes one for each device of each machine."""
    num_machines: int = 1
    """Machines; with more than one, `output_dir` must be given and shared."""
    machine_rank: int = 0
    """Number of this machine, from 0."""
    main_process_ip: str | None = None
    """Address of machine 0, where all machines meet."""
    main_process_port: int | None = None
    """Port there; null takes a free one on one machine, and 29500 with more."""
    rdzv_timeout: int = 600
    """Seconds to wait for the other machines."""
    fsdp_version: int = 2
    """2, or 1 for torch's older FSDP."""
    sharding_strategy: choices.Sharding = choices.Sharding.full_shard
    """Sharded: everything; all but the weights between forward and backward; or FSDP1's hybrid."""
    cpu_offload: bool = False
    """Keep shards and optimizer in the machine's memory: less of the device's, slower."""
    cpu_ram_efficient_loading: bool = True
    """Read the weights in one process and send the others their shards; needs machine memory for one copy."""
    transformer_layer_cls_to_wrap: Any = None
    """Classes of the blocks that are sharded one by one; null takes those that the model names."""
    backward_prefetch: choices.Prefetch = choices.Prefetch.BACKWARD_PRE
    """FSDP1: when the next block's weights are fetched in the backward pass."""
    forward_prefetch: bool = False
    """FSDP1: fetch the next block's weights during the forward pass."""
    use_orig_params: bool = True
    """FSDP1: keep parameters apart; adapters need it, as they freeze some and train others."""
    config_file: str | None = None
    """The user's own accelerate YAML: its values hold where the command line is silent."""
    slurm: Slurm | None = None
    """Options of the Slurm job that the run becomes; null runs it here and now."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    _target_: str = SFT
    """Class that encodes rows, trains and scores for it; one of your own package needs `--trust`."""
    config_class: str = "trl.SFTConfig"
    """Configuration class of TRL whose fields `training` takes."""
    model_class: str = "AutoModelForCausalLM"
    """Class of transformers that holds the weights."""
    model_fields: dict[str, Any] = field(default_factory=dict)
    """Fields of the model's configuration that the class needs, such as `num_labels: 1`."""
    new_modules: list[str] = field(default_factory=list)
    """Modules of the class that the base has no weights for, such as `score`; they start random."""
    task_type: str = "CAUSAL_LM"
    """PEFT's name for what the model does."""
    columns: list[str] = field(default_factory=lambda: ["input_ids", "labels"])
    """Columns of a tokenised row; any but these two hold the tokens of texts that the format returns by these names."""
    frozen_copies: int = 0
    """Models of the same size that are held and not trained, such as a reference; the plan counts them."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """Metrics by name that a run has in addition: `label`, `better`, `where`, and if need be `unit` and `form`."""


SUPERVISED = Objective()
"""That of jobs without one, and of models that are loaded to answer."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    enabled: bool = True
    """Evaluate the held-out rows after training."""
    base: bool = True
    """Evaluate the base model too, before training, to compare."""
    max_rows: int | None = None
    """Evaluate at most this many held-out rows; null takes all."""
    max_new_tokens: int = 64
    """Tokens to generate at most; fewer where no held-out answer is that long."""
    batch_size: int = 16
    """Rows that are generated together."""
    sample: int = 0
    """Generate answers to so many held-out rows at each `training.eval_strategy`; log exact match, accuracy, F1."""


@dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    metric: str = "eval_loss"
    """Metric that must improve, by its name in `metrics.jsonl`."""
    patience: int = 3
    """Stop when it has not improved for this many values in a row."""
    threshold: float = 0.0
    """Smallest change that counts as an improvement."""
    greater_is_better: bool = False
    """Whether more is better, as for `eval_mean_token_accuracy`."""


@dataclass(frozen=True, kw_only=True)
class Callbacks:
    early_stopping: EarlyStopping | None = None
    """Stop when a metric no longer improves; null does not."""
    stop_when: str | list[str] | None = None
    """Stop when this condition holds, or one of these: `loss < 0.1`; null does not."""
    others: dict[str, dict[str, Any]] = field(default_factory=dict, metadata={"stands_as": "callbacks.NAME"})
    """The user's own by name: `_target_` of a `transformers.TrainerCallback`, and its arguments."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    stop_losers: bool = False
    """Stop a point of a sweep whose loss on the held-out rows shows that another point is better."""
    risk: float = 0.05
    """Chance, over the whole sweep, that the best point is among the stopped ones."""
    warm_up: float = 0.1
    """Share of a point's steps before it can be stopped."""
    patience: int = 2
    """Evaluations in a row at which the other point must be ahead; the newest must be sure."""
    points: int | None = None
    """Points of the sweep, which share the risk; set by fmstune, from the command."""
    pruner: str | None = None
    """Class of `optuna.pruners` that stops points of a search; set by fmstune, from `hydra.sweeper.pruner`."""
    pruner_fields: dict[str, Any] = field(default_factory=dict)
    """Its arguments; set by fmstune, from `hydra.sweeper.pruner_fields`."""


@dataclass(frozen=True, kw_only=True)
class Job:
    name: str
    """Name of the run, part of the default `output_dir`."""
    seed: int = 42
    """Seed of everything random: adapter weights, dropout, data order, hold-out split."""
    output_dir: str | None = None
    """The run's folder; null is filled as `runs/<date>/<time>-<name>`. With `-m` the sweep's folder."""
    compare_by: str | None = None
    """Number that compares runs, by its path in `summary.json`; null takes `tuned.eval_loss`, else `train_loss`."""
    direction: choices.Direction | None = None
    """Whether less or more of that number is better; null takes what its metric says."""
    model: Model
    """The model to tune."""
    peft: dict[str, Any]
    """`_target_` and fields of the PEFT configuration, under PEFT's names."""
    data: Data
    """The training rows and the held-out rows."""
    training: dict[str, Any]
    """Fields of `trl.SFTConfig`, under their own names."""
    launcher: Launcher = field(default_factory=Launcher)
    """Where it runs."""
    objective: Objective = field(default_factory=Objective)
    """What the model is trained for."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    """How base and tuned model are compared."""
    tracking: dict[str, Any] = field(default_factory=dict)
    """Trackers of the run by name, each with its `_target_` and settings; `metrics.jsonl` is always written."""
    callbacks: Callbacks = field(default_factory=Callbacks)
    """Early stopping, and callbacks of your own."""
    sweep: Sweep = field(default_factory=Sweep)
    """How the points of a sweep are compared while they train."""


def tunes_an_adapter(job: Job) -> bool:
    """Whether the base weights stay as they are."""
    return bool(job.peft["_target_"] != FULL)


def sources(data: Data, field: str) -> dict[str, Source]:
    """The sources of `train` or `eval` by name ("" for a single one), completed from the group; {} for null."""
    given = getattr(data, field)
    if given is None:
        return {}
    named = given if isinstance(given, dict) else {"": given}
    found = {name: Source(**one) if isinstance(one, dict) else Source(path=one) for name, one in named.items()}
    for name, source in found.items():
        max_rows = data.max_rows if source.max_rows is None and field == "train" else source.max_rows
        found[name] = replace(source, format=source.format or data.format, max_rows=max_rows)
    return found


def is_sharded(launcher: Launcher) -> bool:
    """Whether each process holds a part of the weights only."""
    return launcher.strategy is choices.Strategy.fsdp


def has_held_out(data: Data) -> bool:
    """Whether some rows are kept from training."""
    return data.eval is not None or data.eval_fraction > 0


def text_columns(objective: Objective) -> tuple[str, ...]:
    """The columns that hold texts of their own; none where a row is one text."""
    return tuple(name for name in objective.columns if name not in SUPERVISED.columns)


def order_seed(job: Job) -> int:
    """The seed of the order of rows: `training.data_seed`, else that of the job, as in transformers."""
    return int(job.seed if (given := job.training.get("data_seed")) is None else given)
