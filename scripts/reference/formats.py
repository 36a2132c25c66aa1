"""The page of file formats."""

from collections.abc import Iterable

from scripts.reference.markdown import code, table
from scripts.reference.source import fields_table, schema

COLUMNS = {
    "label": "Index of the class, dense from 0; -1 for an image without a landmark.",
    "landmark_id": "Id of the class: the folder's name, or the landmark id of GLDv2.",
    "name": "Name of the class.",
    "images": "Number of images of the class.",
    "sample": "Index of the image in its split, dense from 0.",
    "image_id": "Id of the image: the file name without its extension, or the id of GLDv2.",
    "split": "train, val or test.",
    "shard": "Index of the shard in its split.",
    "row_group": "Index of the row group in its shard.",
    "width": "Width of the stored image, pixels.",
    "height": "Height of the stored image, pixels.",
    "origin": "File of the source that the image came from.",
    "reason": "Why the image was rejected, dropped or relabeled.",
    "image": "The image as JPEG, RGB.",
    "action": "drop or relabel.",
    "score": "Score of the detector.",
    "threshold": "Threshold that the score was compared with.",
    "other_split": "Split of the image that this one duplicates.",
    "other_image_id": "Id of the image that this one duplicates.",
    "other_label": "Label of the image that this one duplicates.",
    "new_label": "Label after relabeling.",
}
"""Column -> its meaning; each column of a schema must be here."""


SCHEMAS = (
    ("labels.parquet", "LABELS_SCHEMA", "One row per class, in the order of the labels."),
    (
        "catalog.parquet",
        "CATALOG_SCHEMA",
        "One row per image, without pixels. GLDv2 with `--gldv2.attribution` adds columns for author and license. "
        "`--folders.groups` adds the column `group`.",
    ),
    ("{train,val,test}/NNNNN.parquet", "SHARD_SCHEMA", "A shard: one row per image. The pages have CRC checksums."),
    ("rejects.parquet", "REJECTS_SCHEMA", "One row per image that could not be packed."),
)


CLEANED = (
    ("kept.parquet", "KEPT_SCHEMA", "One row per image that is kept."),
    ("audit.parquet and audit.csv", "AUDIT_SCHEMA", "One row per image that is dropped or relabeled."),
)


def formats() -> str:
    """Return the page of file formats."""
    parts = [
        "# File formats",
        "All tables are Parquet or CSV. All paths may be folders or URIs.",
        *dataset_parts(),
        *run_parts(),
        *study_parts(),
        *evaluation_parts(),
        *prediction_parts(),
    ]
    return "\n\n".join(parts)


def dataset_parts() -> list[str]:
    """Return the sections of packed and cleaned datasets."""
    return [
        "## Packed dataset",
        "`landmark prepare` writes it. manifest.json is written last: a dataset without one is unfinished, and the same "
        "command resumes it. A sample's number is the position of its row in its split: the rows of the split's earlier shards, "
        "plus its row in the shard.",
        "### manifest.json",
        fields_table("Manifest"),
        "Each entry of `splits`:",
        fields_table("SplitEntry"),
        "Each entry of `shards`:",
        fields_table("ShardEntry"),
        *schema_parts(SCHEMAS),
        "## Cleaned dataset",
        "`landmark clean` writes it: a filtered view of a packed dataset, without pixels.",
        *schema_parts(CLEANED),
        table(
            ("File", "Content"),
            [
                (
                    "`manifest.json`",
                    "The packed dataset that this is a view of, identified by the checksums of its shards.",
                ),
                ("`clean.json`", "Counts before and after, by reason; thresholds; seconds."),
                ("`examples.parquet`", "The clearest cases of each reason as small JPEGs, for `landmark report`."),
            ],
        ),
    ]


def run_parts() -> list[str]:
    """Return the sections of a run and its checkpoints."""
    return [
        "## Run",
        "`landmark train` writes it.",
        table(
            ("File", "Content"),
            [
                ("`config.yaml`", "The resolved configuration. `--config` reads it."),
                ("`history.csv`", "One row per epoch with all [metrics](metrics.md)."),
                ("`run.json`", "Result, command, versions, hardware, seconds."),
                ("`checkpoints/`", "The newest checkpoints and the best one, and `index.json` with their names."),
                ("`tensorboard/`", "TensorBoard events."),
                ("`profile/`", "Traces, with `--profile-steps`."),
                ("`evaluation-SPLIT/`", "Results of `landmark evaluate`."),
                ("`gallery/`", "k-NN gallery of `landmark index`."),
                ("`report/`", "Page and tables of `landmark report`."),
            ],
        ),
        "Next to the runs, `features/` has the features of `--recipe probe`, `finetune` and of teachers: a folder per key of weights, "
        "images and preprocessing, in it one per split and view, with Parquet files of `sample` and `feature`. You can delete it at "
        "any time.",
        "`landmark soup` writes a folder with the model files of a checkpoint (`model.safetensors`, `config.yaml`, `meta.json`, which is "
        "written last) and `soup.json`: the averaged models, and the validation metrics of all that was compared.",
        "### Checkpoint",
        "A folder such as `checkpoints/epoch-0003`. It is complete when `checksums.json` is there.",
        table(
            ("File", "Content"),
            [
                ("`model.safetensors`", "The weights."),
                ("`config.yaml`", "The recipe that the model was built by."),
                ("`meta.json`", "Description of the model, see below."),
                ("`state.pt`", "State for resuming: optimizer, schedule, and the samples that the epoch has used."),
                ("`checksums.json`", "SHA-256 of each file, written last."),
            ],
        ),
        fields_table("CheckpointMeta"),
    ]


def study_parts() -> list[str]:
    """Return the sections of a study."""
    return [
        "## Study",
        "`landmark tune` writes it.",
        table(
            ("File", "Content"),
            [
                (
                    "`study.json`",
                    "Best trial, counts, epochs compared with the full grid, baselines, seconds, versions.",
                ),
                ("`leaderboard.csv`", "One row per trial, best first, with test metrics if evaluated."),
                ("`history.csv`", "One row per trial and epoch."),
                ("`config.yaml`, `space.yaml`", "The resolved configuration, and the search space."),
                ("`journal/`", "All events of the study as JSON lines. A study resumes from it."),
                ("`trials/`", "A folder per trial with its checkpoints."),
                ("`best/`", "The best model."),
            ],
        ),
    ]


def evaluation_parts() -> list[str]:
    """Return the sections of an evaluation."""
    return [
        "## Evaluation",
        "`landmark evaluate` writes it to `evaluation-SPLIT`.",
        table(
            ("File", "Content"),
            [
                ("`metrics.json`", "All [metrics](metrics.md), their baselines and intervals."),
                ("`predictions.parquet`", "sample, image_id, label, the top-k labels and scores, loss."),
                (
                    "`per_class.csv`, `per_class.parquet`",
                    "Recall, precision, images, training images and band of each class.",
                ),
                ("`confusion.csv`, `confusion.png`", "Nonzero cells of the confusion matrix; the matrix as an image."),
                ("`calibration.csv`, `bands.csv`", "Bins of the confidence; bands of the class frequency."),
                ("`examples.parquet`", "Confident mistakes and confused pairs as small JPEGs, for `landmark report`."),
                ("`comparison.json`, `comparison.parquet`, `comparison_classes.csv`", "Results of `--against`."),
                ("`parts/`", "Predictions of shards of the split, from which an interrupted evaluation resumes."),
            ],
        ),
    ]


def prediction_parts() -> list[str]:
    """Return the sections of predictions and galleries."""
    return [
        "## Predictions",
        "`landmark predict -o OUTPUT` writes it.",
        table(
            ("Column", "Meaning"),
            [
                ("`image_id`", "Id of the image, or its path below the folder."),
                (
                    "`label`, `landmark_id`, `name`, `score`",
                    "The first prediction; label -1 and no name below `--reject`.",
                ),
                ("`name_2`, `score_2`, …", "Further predictions, `--top-k` in total."),
                ("`nearest_image`, `nearest_cosine`", "k-NN only: the most similar image of the gallery."),
            ],
        ),
        "`embeddings.parquet` has the columns `image_id` and `embedding`, a list of float16 of length 1.",
        "## Gallery",
        "`landmark index` writes it to `gallery`.",
        table(
            ("File", "Content"),
            [
                ("`gallery.json`", "Written last: the current revision, a digest of the weights, and what was added."),
                ("`revision-NNNN/classes.parquet`", "landmark_id and name, one row per label."),
                (
                    "`revision-NNNN/rows.parquet`",
                    "image_id, label and source of each image, in the order of the index.",
                ),
                ("`revision-NNNN/index.usearch`", "The embeddings (float16) and their graph."),
            ],
        ),
    ]


def schema_parts(schemas: Iterable[tuple[str, str, str]]) -> list[str]:
    """Return the sections of Parquet files by the schemas in the code."""
    parts = []
    for file, name, text in schemas:
        columns = schema(name)
        missing = [column for column, _ in columns if column not in COLUMNS]
        if missing:
            raise SystemExit(f"scripts/reference: error: not documented in COLUMNS: {', '.join(missing)} ({name})")
        rows = [(code(column), kind, COLUMNS[column]) for column, kind in columns]
        parts += [f"### {file}", text, table(("Column", "Type", "Meaning"), rows)]
    return parts
