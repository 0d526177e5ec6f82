# SPDX-License-Identifier: Apache-2.0
"""MODEL ROWS BATCH WARM TIMED DEVICE: plain SFTTrainer on tokenised rows; prints tokens a second."""

import sys
import tempfile
import time

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, TrainerState
from trl import SFTConfig, SFTTrainer


class Clock(TrainerCallback):
    """The moment at which the warm-up ends, and at which the last step does."""

    def __init__(self, warm: int, device: str) -> None:
        self.warm, self.device, self.begun, self.ended = warm, device, 0.0, 0.0

    def on_step_end(self, args: SFTConfig, state: TrainerState, control: object, **kwargs: object) -> None:
        if state.global_step not in (self.warm, state.max_steps):
            return
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.ended = time.perf_counter()
        if state.global_step == self.warm:
            self.begun = self.ended


def main(model: str, rows: str, batch: str, warm: str, timed: str, device: str) -> None:
    on_gpu, clock = device == "cuda", Clock(int(warm), device)
    dataset = load_dataset("json", data_files=rows, split="train")
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder,
            max_steps=int(warm) + int(timed),
            per_device_train_batch_size=int(batch),
            gradient_accumulation_steps=1,
            learning_rate=1e-4,
            train_sampling_strategy="sequential",
            activation_checkpointing=False,
            max_length=None,
            bf16=on_gpu,
            use_cpu=not on_gpu,
            dataloader_pin_memory=on_gpu,
            logging_steps=int(timed),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(model, dtype="bfloat16" if on_gpu else "float32"),
            args=arguments,
            train_dataset=dataset,
            processing_class=AutoTokenizer.from_pretrained(model),
            peft_config=lora,
            callbacks=[clock],
        )
        trainer.train()
    first, last = int(batch) * int(warm), int(batch) * (int(warm) + int(timed))
    tokens = sum(len(dataset[number % len(dataset)]["input_ids"]) for number in range(first, last))
    print(f"tokens_per_second={tokens / (clock.ended - clock.begun):.1f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
