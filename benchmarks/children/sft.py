# SPDX-License-Identifier: Apache-2.0
"""MODEL ARROW METHOD STEPS BATCH FOLDER: the shortest script that gives SFTTrainer a model and tokenised rows."""

import sys
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, TrainerState
from trl import SFTConfig, SFTTrainer


class Steps(TrainerCallback):
    """A line in a file for each step, by the first of several processes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_step_end(self, args: SFTConfig, state: TrainerState, control: object, **kwargs: object) -> None:
        if not state.is_world_process_zero:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write("step\n")


def main(model: str, arrow: str, method: str, steps: str, batch: str, folder: str) -> None:
    arguments = SFTConfig(
        output_dir=folder,
        max_steps=int(steps),
        per_device_train_batch_size=int(batch),
        gradient_accumulation_steps=1,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        optim="adamw_torch_fused",
        train_sampling_strategy="sequential",
        activation_checkpointing=False,
        max_length=None,
        bf16=False,
        use_cpu=True,
        dataloader_pin_memory=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    lora = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    Path(folder).mkdir(exist_ok=True)
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype="float32"),
        args=arguments,
        train_dataset=Dataset.from_file(arrow),
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=lora if method == "lora" else None,
        callbacks=[Steps(Path(folder) / "steps")],
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main(*sys.argv[1:])
