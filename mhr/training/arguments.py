"""The settings of training as the Trainer of transformers takes them."""

from __future__ import annotations

from transformers import TrainingArguments

from mhr.runs.run import RunFolder
from mhr.runs.train_settings import TrainConfig
from mhr.training.optimizers import transformers_name
from mhr.training.processes import on_gpu

TRANSFORMERS_SCHEDULERS = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


def trainer_arguments(
    config: TrainConfig, run: RunFolder, resumable: bool, whole: bool, *, validated: bool, workers: int
) -> TrainingArguments:
    """What the Trainer is given for a run.

    resumable  whether checkpoints are written; whole: whether all weights train; validated: whether validation is looked at
    workers    of the data loader
    """
    return TrainingArguments(
        output_dir=str(run.checkpoints),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulation,
        learning_rate=config.lr,
        optim=transformers_name(config.optimizer),
        adam_epsilon=config.adam_epsilon,
        weight_decay=config.weight_decay,
        max_grad_norm=config.clip,
        lr_scheduler_type=TRANSFORMERS_SCHEDULERS[config.scheduler],
        warmup_steps=config.warmup_steps,
        bf16=config.precision == "bf16",
        fp16=config.precision == "fp16",
        seed=config.seed,
        save_strategy="steps" if resumable else "no",
        save_steps=config.save_every,
        logging_steps=config.log_every,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        dataloader_num_workers=workers,
        dataloader_pin_memory=on_gpu(),
        use_cpu=not on_gpu(),
        # A model trained whole may have weights that a task leaves out (a pooler); a bank has none.
        ddp_find_unused_parameters=whole,
        eval_strategy="steps" if validated else "no",
        eval_steps=config.eval_every if validated else None,
        metric_for_best_model=(config.best_by or "loss") if validated else None,
        greater_is_better=config.best_by == "score" if validated else None,
        run_name=run.path.name,
        report_to=[],
        disable_tqdm=True,
    )
