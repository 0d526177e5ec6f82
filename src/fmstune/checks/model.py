"""Rules on the model group: folders, special tokens and quantization."""

from collections.abc import Iterator

from fmstune import files
from fmstune.checks.limits import are_names
from fmstune.checks.weights import adapter_weight_problems, weight_problems
from fmstune.config.choices import Attention, Backend, Device, Kernels
from fmstune.config.job import Job, tunes_an_adapter
from fmstune.errors import Problem, UserError, did_you_mean
from fmstune.runs import manifest

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "extra_special_tokens")


def model_problems(job: Job) -> Iterator[Problem]:
    """Yield the problems of the model group; folders are looked into, and the hub is not asked."""
    model = job.model
    yield from _place_problems("model.path", model.path, wants="config.json")
    if model.tokenizer is not None:
        yield from _place_problems("model.tokenizer", model.tokenizer, wants="tokenizer_config.json")
    if model.adapter is not None:
        yield from _place_problems("model.adapter", model.adapter, wants="adapter_config.json")
        if not tunes_an_adapter(job):
            yield Problem("model.adapter", "is an adapter to train further, and peft=full has none; choose peft=lora")
    yield from _quantization_problems(job)
    if model.chat_template is not None:
        yield from files.absent("model.chat_template", model.chat_template)
    if model.architecture is not None and "model_type" not in model.architecture:
        yield Problem("model.architecture", "needs model_type, such as llama")
    for name, value in model.special_tokens.items():
        field = f"model.special_tokens.{name}"
        if name not in SPECIAL_TOKENS:
            hint = did_you_mean(name, SPECIAL_TOKENS)
            yield Problem(field, f": unknown{hint}; the names are {', '.join(SPECIAL_TOKENS)}")
        elif name == "extra_special_tokens" and not are_names(value):
            yield Problem(field, f"must be a list of text, got {value!r}")
        elif name != "extra_special_tokens" and not isinstance(value, str):
            yield Problem(field, f"must be text, got {value!r}")
        elif value == "":
            yield Problem(field, "is empty; give the token's text, or leave the field out")
    device = job.launcher.device
    if model.attention is Attention.flash_attention_2 and device in (Device.cpu, Device.mps):
        yield Problem("model.attention", f"=flash_attention_2 needs a CUDA device, and launcher.device={device.value}")
    yield from _kernel_problems(job)


def _kernel_problems(job: Job) -> Iterator[Problem]:
    device = job.launcher.device
    if job.model.kernels is Kernels.none:
        return
    if device in (Device.cpu, Device.mps):
        text = f"=liger needs a CUDA device, as Triton compiles its kernels, and launcher.device={device.value}"
        yield Problem("model.kernels", f"{text}; set it to none")
    if job.model.backend is Backend.fms:
        yield Problem("model.kernels", "=liger replaces blocks of transformers; set it to none under model.backend=fms")


def _quantization_problems(job: Job) -> Iterator[Problem]:
    quantization, device = job.model.quantization, job.launcher.device
    if quantization is None:
        return
    if not tunes_an_adapter(job):
        text = ": quantised weights cannot be trained; choose an adapter (peft=lora), or null"
        yield Problem("model.quantization", text)
    if quantization.load_in_4bit == quantization.load_in_8bit:
        chosen = "both set" if quantization.load_in_4bit else "both false"
        yield Problem("model.quantization", f": load_in_4bit and load_in_8bit are {chosen}; set one of them to true")
    if device in (Device.cpu, Device.mps):
        yield Problem("model.quantization", f"needs a CUDA device, and launcher.device={device.value}; set it to null")


def _place_problems(field: str, place: str, wants: str) -> Iterator[Problem]:
    """Yield a problem where a folder lacks a file, or where the place is neither a folder nor a hub id."""
    try:
        folder = files.user_path(files.resolve(place))
    except UserError as err:
        yield Problem(field, f": {err}")
        return
    if folder.is_dir():
        if not (folder / wants).is_file():
            yield Problem(field, f": {folder} has no {wants}; give the folder that save_pretrained wrote")
        elif wants != "tokenizer_config.json" and (damage := manifest.find_model_damage(folder)):
            yield Problem(field, f": {folder} is a damaged checkpoint ({', '.join(damage[:3])}); give another")
        elif wants == "config.json":
            yield from weight_problems(field, folder)
        elif wants == "adapter_config.json":
            yield from adapter_weight_problems(field, folder)
    elif folder.is_file():
        yield Problem(field, f": {folder} is a file; give the folder that holds it")
    elif not files.is_model_id(place):
        yield Problem(field, f": no folder {folder}, and {place!r} is not a hub id (owner/name); give one of them")
