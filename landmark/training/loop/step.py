"""The training step: forward and backward pass, optimizer, averages and totals on one rank."""

import contextlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.profiler import record_function

from landmark.config import Recipe, UserError
from landmark.data.loading.loader import Batch
from landmark.models import (
    MixedLabels,
    ModelInfo,
    Targets,
    embedding_classifier,
    has_lora,
    logits_of,
    train_mode,
)
from landmark.training.compute.communication import (
    keep_from_ddp,
    register_comm_hook,
    sync_batch_norms,
    without_exchange,
)
from landmark.training.compute.compiler import check_compiler
from landmark.training.compute.determinism import check_deterministic, replace_pooling
from landmark.training.compute.device_augmentation import Augmentation, Preprocess, partner_labels
from landmark.training.compute.device_prefetch import DeviceBatch, place
from landmark.training.compute.ema import ModelEma
from landmark.training.compute.gradient_checkpointing import checkpoint_blocks
from landmark.training.compute.micro_batches import in_fitting_parts, measured_parts
from landmark.training.compute.optim import Schedule, build_optimizer, load_optimizer
from landmark.training.compute.partial_fc import PartialFC
from landmark.training.compute.precision import Precision, set_up_device
from landmark.training.loop.objective import Objective
from landmark.training.loop.session import Session
from landmark.training.loop.totals import TrainTotals

HINT = "lower optimizer.lr or set optimizer.clip_norm"


class TrainStep:
    """Training step on one rank with the state that it changes: weights, optimizer, averages.

    class_counts: training images per class, int64 (classes,), required by loss.class_weights, loss.logit_adjustment and dynamic
    margins.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        info: ModelInfo,
        session: Session,
        class_counts: np.ndarray | None = None,
    ) -> None:
        compute = recipe.compute
        set_up_device(compute, session.device)
        if compute.compile:
            check_compiler(session.device)
        if compute.sync_batchnorm:
            model = sync_batch_norms(model, recipe.model.backbone, session.device)
        self.model = model.to(memory_format=torch.channels_last) if compute.channels_last else model
        self.recipe = recipe
        self.session = session
        smallest = min(recipe.shape(epoch)[0] for epoch in range(1, recipe.epochs + 1))
        self.precision = Precision(compute, session.device, self.model, smallest)
        if compute.deterministic and session.device.type == "cuda":
            replace_pooling(self.model)
            largest = max(recipe.shape(epoch)[0] for epoch in range(1, recipe.epochs + 1))
            check_deterministic(self.model, largest, self.precision, recipe.model.backbone)
        self.preprocess = Preprocess(info.mean, info.std, session.device, channels_last=compute.channels_last)
        self.augmentation = Augmentation(recipe.augment, recipe.seed)
        self.objective = Objective(recipe, class_counts, session.device)
        self.partial_fc = None
        classifier = embedding_classifier(model)
        if classifier is not None and recipe.model.head.sample is not None:
            self.partial_fc = PartialFC(classifier, recipe, session, self.objective.margin)
            keep_from_ddp(model, classifier)
        self.optimizer = build_optimizer(model, recipe.optimizer, recipe.loader.batch_size)
        self.average = ModelEma(model, recipe.ema) if recipe.ema.decay is not None else None
        self.accumulate = compute.accumulate
        """Micro-batches per step. It doubles if a step does not fit into the memory."""
        self.show: Callable[[str], object] | None = None
        """Receives the messages for the user, on rank 0."""
        self.steps = 0
        """Steps since the start of the run, including those before a resume."""
        # The fp16 gradient scaler finds its scale by steps that overflow and are skipped, even with nonfinite stop.
        self._guarded = recipe.optimizer.nonfinite == "skip" or self.precision.scaler.is_enabled()
        self._sums = torch.zeros(4, dtype=torch.float64, device=session.device)
        self._bad = torch.zeros(2, dtype=torch.float64, device=session.device)
        self._epoch = 0
        self._ready: nn.Module | None = None
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._buffers = list(model.buffers())

    @property
    def evaluated(self) -> nn.Module:
        """The model to validate and save: the averaged one if there is an average."""
        return self.model if self.average is None else self.average.model

    def restart_average(self) -> None:
        """Restart the average, if there is one, from the model's current weights."""
        if self.average is not None:
            self.average.load()

    def run(self, batch: Batch | DeviceBatch, schedule: Schedule, step: float, batch_size: int) -> float:
        """Run one step and return its learning rate. step, batch_size: as in Schedule.set_lr.

        A rank's mean loss is weighted with its fraction of the step's images, so that the gradient averaged over ranks
        is the gradient of the mean over all of the step's images. Does not wait for the device, unless non-finite steps
        are skipped.
        """
        model = self.prepare()
        placed = batch if isinstance(batch, DeviceBatch) else place(batch, self.session.device)
        self.steps += 1
        self._epoch = placed.host.epoch
        before = [buffer.clone() for buffer in self._buffers] if self._guarded else []
        with record_function("landmark: preprocess"):
            inputs, mixed = self.augmentation(self.preprocess(placed.images, placed.flip), placed)
        lr = schedule.set_lr(step, batch_size)
        self.optimizer.zero_grad(set_to_none=True)
        if self.partial_fc is None:
            targets = self.objective.targets(placed, mixed)
            sums = self._fitting_gradient(model, inputs, targets, placed.host.weight)
        else:
            # Clipping and skipping need the whole gradient before any class weight changes.
            at_once = self.recipe.optimizer.clip_norm is None and not self._guarded
            sums = self._sampled_gradient(model, inputs, placed, mixed, batch_size, lr if at_once else None)
        with record_function("landmark: optimizer"):
            taken = self._update(lr)
        if taken:
            self._sums[:3] += sums
            if self.average is not None:
                self.average.update(self.steps)
        else:
            if self.partial_fc is not None:
                self.partial_fc.forget()
            if before:
                torch._foreach_copy_(self._buffers, before)
            self._sums[3] += float(self.session.rank == 0)
        if self.recipe.optimizer.nonfinite == "stop":
            self._note(sums[0])
        return lr

    def prepare(self) -> nn.Module:
        """Return the model ready for training: wrapped by the session, compiled if configured, in training mode."""
        if self._ready is None:
            if self.recipe.compute.gradient_checkpointing:
                checkpoint_blocks(self.model, self.recipe.model.backbone)
            if self.session.world_size > 1 and self.session.device.type == "cuda" and self.partial_fc is None:
                self._measure_parts()
            self._ready = self.session.prepare(self.model)
            register_comm_hook(self._ready, self.recipe.compute)
            if self.recipe.compute.compile:
                self._ready.compile()  # in place, so the names of the weights do not change
            self._train_mode()
        # Validation leaves evaluation mode. Checking every module at every step would cost half a millisecond.
        if not self.model.training:
            self._train_mode()
        return self._ready

    def _train_mode(self) -> None:
        train_mode(self.model, freeze_norm_stats=self.recipe.model.freeze_norm_stats)

    def _fitting_gradient(
        self, model: nn.Module, inputs: torch.Tensor, targets: Targets, weight: float
    ) -> torch.Tensor:
        """Compute the gradient as `_gradient` does, in more micro-batches if the memory is not enough.

        Only for one rank: another rank would already wait for the gradients of the attempt that failed. The attempt also
        updated the batch norms' statistics.
        """
        if self.session.world_size > 1:
            return self._gradient(model, inputs, targets, weight, self.accumulate)

        def retry(message: str, parts: int) -> None:
            self.optimizer.zero_grad(set_to_none=True)
            self._note_parts(message, parts)

        sums, self.accumulate = in_fitting_parts(
            lambda parts: self._gradient(model, inputs, targets, weight, parts),
            self.accumulate,
            len(inputs),
            retry,
            self.session.device,
        )
        return sums

    def _measure_parts(self) -> None:
        """Find the micro-batches that fit on every rank, before the ranks exchange gradients."""
        size, images = max(
            (self.recipe.shape(epoch) for epoch in range(1, self.recipe.epochs + 1)),
            key=lambda shape: shape[0] ** 2 * shape[1],
        )
        rows = -(-images // self.session.world_size)
        pixels = torch.zeros(rows, size, size, 3, dtype=torch.uint8, device=self.session.device)
        inputs = self.preprocess(pixels, torch.zeros(rows, dtype=torch.bool, device=self.session.device))

        def loss(part: torch.Tensor) -> torch.Tensor:
            with self.precision.autocast():
                return logits_of(self.model(part)).float().square().mean()

        self._train_mode()
        own = measured_parts(self.model, loss, inputs, self.accumulate)
        parts = int(self.session.all_gather(torch.tensor(float(own), device=self.session.device)).max())
        if parts > self.accumulate:
            self._note_parts(f"a batch of {rows} images per worker does not fit into the GPU memory", parts)
            self.accumulate = parts

    def _note_parts(self, message: str, parts: int) -> None:
        if self.show is not None:
            self.show(f"note: {message}; continuing with compute.accumulate {parts}, with the same batch size")

    def _gradient(
        self, model: nn.Module, inputs: torch.Tensor, targets: Targets, weight: float, parts: int
    ) -> torch.Tensor:
        """Compute the gradient in sequential micro-batches. Returns the sums of loss, hits and rows, float64 (3,).

        Micro-batches are weighted with their rows, and the ranks exchange gradients with the last one. The gradient is
        that of the whole batch, except for batch norms, which use one micro-batch at a time.
        """
        rows = len(inputs)
        parts = min(parts, rows)
        sums = torch.zeros_like(self._sums[:3])
        for part in range(parts):
            start, stop = rows * part // parts, rows * (part + 1) // parts
            part_targets = targets.part(start, stop)
            with without_exchange(model) if part < parts - 1 else contextlib.nullcontext():
                with record_function("landmark: forward"), self.precision.autocast():
                    output = model(inputs[start:stop])
                loss = self.objective.loss(output, part_targets)
                with record_function("landmark: backward"):
                    self.precision.scaler.scale(loss * (weight * (stop - start) / rows)).backward()
            with torch.no_grad():
                second = part_targets.mixed
                wanted = part_targets.labels if second is None or second.weight >= 0.5 else second.labels
                hits = (logits_of(output).argmax(1) == wanted).sum()
                count = stop - start
                sums += torch.stack([loss.detach().double() * count, hits.double(), sums.new_full((), count)])
        return sums

    def _sampled_gradient(
        self,
        model: nn.Module,
        inputs: torch.Tensor,
        batch: DeviceBatch,
        mixed: MixedLabels | None,
        batch_size: int,
        lr: float | None,
    ) -> torch.Tensor:
        """Compute the gradient with a sample of the classes. Returns the sums of loss, hits and rows, float64 (3,).

        batch_size, lr: as in PartialFC.loss.
        """
        partial_fc = self.partial_fc
        assert partial_fc is not None
        with record_function("landmark: forward"), self.precision.autocast():
            embeddings = model(inputs)
        with record_function("landmark: classes"):
            losses, hits, gradient = partial_fc.loss(
                embeddings,
                batch.host.labels,
                second=None if mixed is None else partner_labels(batch.host.labels),
                own_weight=1.0 if mixed is None else mixed.weight,
                class_weights=self.objective.host_class_weights,
                weight=batch.host.weight,
                step=self.steps,
                batch_size=batch_size,
                lr=lr,
            )
        with record_function("landmark: backward"):
            scaled = self.precision.scaler.scale(gradient)
            embeddings.backward(scaled.to(embeddings.dtype))
        count = self._sums.new_full((), len(losses))
        return torch.stack([losses.double().sum(), hits.double().sum(), count])

    def _update(self, lr: float) -> bool:
        """Apply the gradients. Returns False if they are not finite and all ranks skip the step."""
        scaler, clip_norm = self.precision.scaler, self.recipe.optimizer.clip_norm
        scaler.unscale_(self.optimizer)
        finite = True
        factor: torch.Tensor | float = 1.0
        if clip_norm is not None or self._guarded:
            # The gradients are already averaged over the ranks, so the norm is the same on each.
            if self.partial_fc is None:
                norm = nn.utils.clip_grad_norm_(self._parameters, clip_norm or math.inf)
            else:
                norm, factor = self._clip_with_partial_fc(self.partial_fc, clip_norm)
            finite = not self._guarded or bool(torch.isfinite(norm))
        if finite:
            # Not called for skipped steps: a fused SGD that skips its first step by itself keeps uninitialized momentum
            # (seen with torch 2.14).
            scaler.step(self.optimizer)
            if self.partial_fc is not None:
                self.partial_fc.update(lr, factor)
        scaler.update()
        return finite

    def _clip_with_partial_fc(
        self, partial_fc: PartialFC, clip_norm: float | None
    ) -> tuple[torch.Tensor, torch.Tensor | float]:
        """Clip gradients of weights and class weights together. Returns the norm and the factor for class weights."""
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        norm = (nn.utils.get_total_norm(gradients).square() + partial_fc.squared_norm()).sqrt()
        if clip_norm is None:
            return norm, 1.0
        nn.utils.clip_grads_with_norm_(self._parameters, clip_norm, norm)
        return norm, (clip_norm / (norm + 1e-6)).clamp(max=1.0)

    def _note(self, loss: torch.Tensor) -> None:
        """Record the first step whose loss is not finite, without waiting for the device."""
        fault = torch.stack([loss, loss.new_full((), self.steps)])
        first = torch.isfinite(loss) | (self._bad[1] > 0)
        self._bad = torch.where(first, self._bad, fault)

    def take_totals(self) -> TrainTotals:
        """Return the sums since the last call and reset them. Waits for the device.

        Raises UserError if the loss became infinite or NaN since the last call.
        """
        self.check_finite()
        loss, hits, rows, skipped = self._sums.tolist()
        self._sums.zero_()
        return TrainTotals(loss=loss, hits=hits, rows=int(rows), skipped=int(skipped))

    def check_finite(self) -> None:
        """Raise UserError unless all losses since the start and the weights are finite. Waits for the device.

        With several ranks, the check of the weights detects on all ranks what one rank's loss caused.
        """
        loss, step = self._bad.tolist()
        if step:
            raise UserError(f"the loss became {loss} in epoch {self._epoch} (step {step:.0f}); {HINT}")
        if self._parameters and not torch.isfinite(nn.utils.get_total_norm(self._parameters)):
            raise UserError(f"the weights are not finite in epoch {self._epoch} (step {self.steps}); {HINT}")

    def state(self) -> dict[str, Any]:
        """Return the state for a resume, except the weights of `evaluated`: tensors and plain values."""
        state: dict[str, Any] = {"optimizer": self.optimizer.state_dict(), "steps": self.steps}
        if self.precision.scaler.is_enabled():
            state["scaler"] = self.precision.scaler.state_dict()
        if self.average is not None or has_lora(self.model):
            state["weights"] = self.model.state_dict()
        if self.average is not None:
            state["average"] = self.average.state()
        if self.partial_fc is not None:
            state["centres"] = self.partial_fc.state()
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """Load a state. The weights of `evaluated` must already be loaded into `model`."""
        load_optimizer(self.optimizer, state["optimizer"])
        self.steps = state["steps"]
        if has_lora(self.model):  # the model does not have the stored weights yet
            self.model.load_state_dict(state["weights"])
        self.restart_average()
        if self.average is not None and "average" in state:
            self.average.load_state(state["average"])
        if "weights" in state:
            self.model.load_state_dict(state["weights"])
        if "scaler" in state and self.precision.scaler.is_enabled():
            self.precision.scaler.load_state_dict(state["scaler"])
        if self.partial_fc is not None:
            self.partial_fc.load_state(state["centres"])
