"""Options of other training programs, and what landmark calls the same thing.

Sources: timm's train.py, torchvision's references/classification/train.py, Lightning's Trainer and LightningCLI, Hugging
Face's TrainingArguments, all as of November 2026.
"""

import difflib
from collections.abc import Collection

_PROCESSES = "--num-workers is the number of training processes, --loader.decode-threads the number of decoding threads"
_GPUS = "--num-workers is the number of training processes, --workers.gpus the number of GPUs per process"

FOREIGN = {
    # timm
    "--pretrained": "--weights pretrained, or --recipe finetune",
    "--data-dir": "the first argument: landmark train DATASET; landmark prepare PHOTOS makes a dataset of your photographs",
    "--resume": "--resume (without a value) together with the --name and --output of the run",
    "--initial-checkpoint": "--weights FILE",
    "--num-classes": "--classes N trains on a subset of the classes; the number of classes is read from the dataset",
    "--workers": _PROCESSES,
    "-j": _PROCESSES,
    "-b": "--batch-size N (global, over all training processes)",
    "--validation-batch-size": "--batch-size N (validation uses the same)",
    "--opt-eps": "--opt NAME; the optimizer's epsilon is torch's default",
    "--momentum": "--optimizer.momentum",
    "--weight-decay": "--optimizer.weight-decay",
    "--clip-grad": "--optimizer.clip-norm",
    "--layer-decay": "--optimizer.layer-decay",
    "--lr-base": "--lr with --optimizer.base-batch-size",
    "--lr-base-size": "--optimizer.base-batch-size",
    "--warmup-epochs": "--schedule.warmup-epochs",
    "--decay-epochs": "--schedule.step-epochs",
    "--decay-rate": "--schedule.factor",
    "--patience-epochs": "--schedule.patience",
    "--aa": "--augment.randaugment-ops and --augment.randaugment-magnitude",
    "--hflip": "--augment.flip or --augment.no-flip",
    "--scale": "--augment.crop-area MIN MAX",
    "--ratio": "--augment.crop-aspect",
    "--reprob": "--augment.erasing",
    "--mixup": "--augment.mixup",
    "--cutmix": "--augment.cutmix",
    "--mixup-prob": "--augment.mix-prob",
    "--smoothing": "--loss.label-smoothing",
    "--drop": "--model.dropout",
    "--gp": "--model.pooling",
    "--model-ema": "--ema.decay",
    "--model-ema-decay": "--ema.decay",
    "--grad-accum-steps": "--compute.accumulate",
    "--grad-checkpointing": "--compute.gradient-checkpointing",
    "--sync-bn": "--compute.sync-batchnorm",
    "--torchcompile": "--compute.compile",
    "--amp-dtype": "--amp bf16 or --amp fp16",
    "--native-amp": "--amp",
    "--experiment": "--name",
    "--eval-metric": "--monitor",
    "--checkpoint-hist": "--checkpoint.keep",
    "--log-wandb": "--wandb PROJECT (landmark tune)",
    "--train-split": "landmark prepare makes the splits: --split.val and --split.test",
    "--val-split": "landmark prepare makes the splits: --split.val and --split.test",
    # torchvision's references
    "--data-path": "the first argument: landmark train DATASET",
    "--device": "--workers.gpus 0 trains on CPUs; GPUs are used if there are any",
    "--lr-scheduler": "--sched",
    "--lr-warmup-epochs": "--schedule.warmup-epochs",
    "--lr-step-size": "--schedule.step-epochs",
    "--lr-gamma": "--schedule.factor",
    "--label-smoothing": "--loss.label-smoothing",
    "--mixup-alpha": "--augment.mixup",
    "--cutmix-alpha": "--augment.cutmix",
    "--random-erase": "--augment.erasing",
    "--auto-augment": "--augment.randaugment-ops",
    "--train-crop-size": "--img-size",
    "--val-resize-size": "--img-size",
    "--clip-grad-norm": "--optimizer.clip-norm",
    "--output-dir": "--output",
    "--test-only": "landmark evaluate RUN",
    "--use-deterministic-algorithms": "--compute.deterministic",
    # Lightning
    "--max-epochs": "--epochs",
    "--max-time": "--minutes or --hours (landmark train), --budget.seconds (landmark tune)",
    "--accelerator": "--workers.gpus 0 trains on CPUs; GPUs are used if there are any",
    "--devices": _GPUS,
    "--num-nodes": "--num-workers is the number of training processes on all nodes; Ray places them",
    "--strategy": "--workers.backend",
    "--precision": "--amp",
    "--gradient-clip-val": "--optimizer.clip-norm",
    "--accumulate-grad-batches": "--compute.accumulate",
    "--default-root-dir": "--output",
    "--ckpt-path": "--resume with the --name of the run; landmark evaluate RUN for a checkpoint",
    # Hugging Face
    "--learning-rate": "--lr",
    "--num-train-epochs": "--epochs",
    "--per-device-train-batch-size": "--batch-size N (global, over all training processes)",
    "--per-device-eval-batch-size": "--batch-size N (global, over all training processes)",
    "--gradient-accumulation-steps": "--compute.accumulate",
    "--gradient-checkpointing": "--compute.gradient-checkpointing",
    "--max-grad-norm": "--optimizer.clip-norm",
    "--warmup-ratio": "--schedule.warmup-epochs",
    "--lr-scheduler-type": "--sched",
    "--optim": "--opt",
    "--fp16": "--amp fp16",
    "--bf16": "--amp bf16",
    "--model-name-or-path": "--model NAME and --weights pretrained",
    "--dataset-name": "the first argument: landmark train DATASET",
    "--train-dir": "the first argument: landmark prepare PHOTOS",
    "--overwrite-output-dir": "another --name, or --resume; delete a run's folder to start again",
    "--resume-from-checkpoint": "--resume with the --name of the run",
    "--dataloader-num-workers": "--loader.decode-threads",
    "--report-to": "--mlflow or --wandb (landmark tune); TensorBoard is on by default",
    "--metric-for-best-model": "--monitor",
    "--save-total-limit": "--checkpoint.keep",
    "--torch-compile": "--compute.compile",
    # Ultralytics, fastai, others
    "--imgsz": "--img-size",
    "--image-size": "--img-size",
    "--batch": "--batch-size",
    "--arch": "--model",
    "-a": "--model",
    "--backbone": "--model",
    "--data": "the first argument: landmark train DATASET",
    "--optimizer": "--opt",
    "--scheduler": "--sched",
    "--gpus": _GPUS,
    "--gpu": _GPUS,
    "--log-dir": "--output",
    "--project": "--output",
}
"""Option of another program -> the landmark option."""

RENAMED = {
    "--checkpoint": "the first argument: landmark VERB RUN",
}
"""Options of earlier versions of landmark -> the option now."""


def misspelled_option(flag: str, known: Collection[str]) -> str | None:
    """Return one line about a flag that resembles another program's more than any that is known, or None."""
    found = difflib.get_close_matches(flag, FOREIGN, n=1, cutoff=0.85)
    own = difflib.get_close_matches(flag, known, n=1, cutoff=0.85)
    if not found or (own and _similarity(flag, own[0]) >= _similarity(flag, found[0])):
        return None
    return f"unknown option '{flag}'; '{found[0]}' is in landmark: {FOREIGN[found[0]]}"


def _similarity(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def foreign_option(flag: str) -> str | None:
    """Return one line that names landmark's option for another program's flag; None if the flag is not known."""
    if flag in FOREIGN:
        return f"unknown option '{flag}'; in landmark: {FOREIGN[flag]}"
    if flag in RENAMED:
        return f"'{flag}' is now {RENAMED[flag]}"
    return None
