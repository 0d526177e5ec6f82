"""transformers' names that it does not promise to keep."""

from typing import Any

from peft import PeftModel
from transformers import PreTrainedConfig, PreTrainedModel, Trainer

from fmstune.models.varlen import VARLEN
from fmstune.upstream import explain_missing_names, require_attributes

OVERRIDDEN = (
    *("_get_dataloader", "_get_output_dir", "_get_train_sampler", "_load_from_checkpoint", "_prepare_for_training"),
    *("_load_best_model", "_prepare_inputs", "_run_epoch", "_save", "_save_checkpoint"),
    *("_load_optimizer_and_scheduler", "_load_rng_state", "_loss_shifts_labels"),
)
"""Private names of Trainer that fmstune's trainer overrides, calls or sets."""
COUNTS = ("_globalstep_last_logged", "_initial_global_step", "_total_loss_scalar", "_tr_loss")
"""Private counts of a training that Trainer begins anew after a resume, and fmstune's trainer carries on."""

with explain_missing_names("transformers"):
    from transformers.trainer_pt_utils import LengthGroupedSampler as LengthGroupedSampler
    from transformers.trainer_utils import rotate_checkpoints as rotate_checkpoints

    require_attributes(Trainer, *OVERRIDDEN)
    require_attributes(Trainer, *COUNTS, method="_inner_training_loop")
    require_attributes(PreTrainedModel, "_is_stateful")
    require_attributes(PreTrainedConfig, "_attn_implementation")


def reads_document_ends(model: PreTrainedModel | PeftModel) -> bool:
    """Whether the model's kernels learn where documents end: FlashAttention's, and those of models with a state."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    return bool(base.config._attn_implementation.startswith("flash") or takes_segments(model) or holds_state(base))


def takes_segments(model: PreTrainedModel | PeftModel) -> bool:
    """Whether the model's attention is `varlen`, which is told where segments begin and end."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    return bool(base.config._attn_implementation == VARLEN)


def holds_state(model: PreTrainedModel) -> bool:
    """Whether the model reads a row token by token into a state, as Mamba does."""
    return bool(model._is_stateful)
