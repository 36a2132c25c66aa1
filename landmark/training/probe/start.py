"""Fits a run's classifier to the features of its start weights, before the first epoch or as the whole run."""

import time
from collections.abc import Callable

import torch
from torch import nn

from landmark.config import LoaderConfig, UserError
from landmark.models import fit_temperature
from landmark.models.heads import Classifier
from landmark.models.stages import classifier_path
from landmark.storage import locate
from landmark.training.loop.state import RunState
from landmark.training.probe.features import CENTER, FeatureStore
from landmark.training.probe.heads import Examples, fit_head, metrics_of, prototypes

MAX_LOGITS = 1 << 30
"""Maximum number of images x classes: 4 GiB in fp32, of which fitting needs about three copies."""
WAITS = ("storage_wait_fraction", "decoding_wait_fraction", "transfer_wait_fraction")
"""Columns of an epoch that a probe does not measure."""


def fit_probe(run: RunState, loader: LoaderConfig, show: Callable[[str], object] | None) -> dict[str, float]:
    """Set the classifier of a new run to the probe, the same on every rank, and return the metrics of an epoch.

    show: receives the messages, on rank 0.
    """
    start = time.perf_counter()
    recipe, session, dataset = run.recipe, run.session, run.dataset
    _check_size(run)
    folder = None if recipe.probe.features is None else locate(recipe.probe.features)
    store = FeatureStore(run.model, recipe, run.info, run.step.precision, dataset, session, folder, loader, show)
    train = _examples(store, "train", range(CENTER, recipe.probe.views))
    val = _examples(store, "val", range(CENTER, CENTER + 1))
    computed_s = time.perf_counter() - start
    layer = run.model.get_submodule(classifier_path(run.model))
    description = _fit(run, layer, train, val)
    run.step.restart_average()
    with torch.no_grad():
        logits = layer(train.features)
        outputs = layer(val.features)
        metrics = metrics_of(outputs, val.labels, dataset.num_classes)
        metrics["temperature"] = fit_temperature(outputs, val.labels)
        scaled = outputs / metrics["temperature"]
        metrics["val_calibrated_loss"] = float(nn.functional.cross_entropy(scaled, val.labels))
    seconds = time.perf_counter() - start
    if show is not None:
        show(
            f"probe: {description}: val loss {metrics['val_loss']:.3f}, val top-1 {metrics['val_top1']:.2%}, "
            f"features {computed_s:.1f} s ({store.computed:,} images computed here), classifier {seconds - computed_s:.1f} s"
        )
    trained = {
        "train_loss": float(nn.functional.cross_entropy(logits, train.labels)),
        "train_top1": float((logits.argmax(1) == train.labels).double().mean()),
        "images_per_s": len(train.labels) / seconds,
        **dict.fromkeys(("data_wait_fraction", *WAITS), 0.0),
        "lr": 0.0,
    }
    lost = {"lost_images": float(store.lost)} if recipe.loader.corrupt == "skip" and store.lost else {}
    return {**trained, **metrics, **lost, "epoch_seconds": seconds}


def _check_size(run: RunState) -> None:
    """Raise UserError if the logits of all images and classes are too many for the memory."""
    recipe, dataset = run.recipe, run.dataset
    images = recipe.probe.views * dataset.split("train").rows + dataset.split("val").rows
    if (logits := images * dataset.num_classes) > MAX_LOGITS:
        raise UserError(
            f"probe.head is {recipe.probe.head}, whose {images:,} images (views included) x {dataset.num_classes:,} classes need "
            f"{4 * logits / 2**30:,.0f} GiB (limit {4 * MAX_LOGITS / 2**30:.0f}); lower probe.views, use a subset, or set "
            "probe.head to none"
        )


def _examples(store: FeatureStore, split: str, views: range) -> Examples:
    """Return the features and labels of views of a split, on the session's device."""
    found = [store.read(split, view) for view in views]
    labels = store.dataset.sample_labels(split)
    device = store.session.device
    return Examples(
        features=torch.cat([torch.from_numpy(each.values.copy()) for each in found]).to(device),
        labels=torch.cat([torch.from_numpy(labels[each.samples]) for each in found]).to(device),
    )


def _fit(run: RunState, layer: nn.Module, train: Examples, val: Examples) -> str:
    """Fit the classifier and write it into the model's last layer. Returns the method for the user."""
    recipe, classes = run.recipe, run.dataset.num_classes
    if isinstance(layer, Classifier) and layer.cosine:
        head, name = prototypes(train, classes), f"prototypes of {recipe.model.head.name}"
    else:
        counts = run.dataset.label_counts("train")
        head, _ = fit_head(train, val, counts, recipe, lambda: run.session.heartbeat("starting"))
        name = str(head)
    with torch.no_grad():
        for parameter, values in ((layer.weight, head.weight), (layer.bias, head.bias)):
            if parameter is not None:
                assert isinstance(parameter, nn.Parameter)
                # Every rank fits the same classifier up to rounding. All use that of rank 0.
                own = values if run.session.rank == 0 else torch.zeros_like(values)
                parameter.copy_(run.session.all_reduce(own.to(run.session.device)))
    return name
