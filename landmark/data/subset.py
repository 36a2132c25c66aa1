"""Subsets: the rows of a table of images to keep. The same seed keeps the same rows on any machine."""

import ast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from landmark.config import SubsetConfig, UserError, nearest
from landmark.config.text import decode_text, filled_lines
from landmark.data.randomness import HashStream, hash_strings
from landmark.storage import Location, locate

_COMPARISONS = {
    ast.Eq: "__eq__",
    ast.NotEq: "__ne__",
    ast.Lt: "__lt__",
    ast.LtE: "__le__",
    ast.Gt: "__gt__",
    ast.GtE: "__ge__",
}


def select_images(table: pa.Table, config: SubsetConfig, seed: int) -> np.ndarray:
    """Return a mask of the rows that a subset keeps: bool (rows,).

    table: image_id string, landmark_id (string or int64), and the columns of the conditions (license, …). Two options
    are not handled here. The source applies the clean list, and `limit_training_images` applies a long tail, because it requires
    the splits.

    Random choices use a hash of (seed, choice, image_id) or (seed, choice, landmark_id). They do not depend on the
    order of the rows, the machine, each other or the splits. With rule 1, all choices use the hash that orders the
    images for the splits.
    """
    kept = np.ones(len(table), dtype=bool)
    if config.licenses:
        kept &= _license_mask(table, config.licenses)
    if config.landmarks is not None:
        kept &= _landmark_mask(table, locate(config.landmarks))
    if config.where is not None:
        kept &= _where_mask(table, config.where)
    codes, names = _class_codes(table["landmark_id"])
    counts = np.bincount(codes[kept], minlength=len(names))
    chosen = _choose_classes(counts, names, config, seed)
    kept &= chosen[codes]
    if config.max_images is not None:
        kept = _limit_classes(kept, codes, table["image_id"], config, seed)
    if config.images is not None:
        kept = _limit_total(kept, codes, table["image_id"], config, seed)
    if not kept.any():
        raise UserError(
            "the subset contains no image; use less strict values for subset.min_images, licenses, landmarks or where"
        )
    return kept


def limit_training_images(table: pa.Table, config: SubsetConfig, seed: int) -> np.ndarray:
    """Return a mask of the rows that tail and shots keep of the train split, and all of other splits: bool (rows,).

    table: image_id string, landmark_id (string or int64), split. N is the number of training images of the most
    frequent class. The n-th most frequent class keeps round(N n^-tail) of its images, at least one and at most `shots`.
    The choice uses a hash of (seed, choice, image_id), so that a larger exponent and fewer shots keep a subset of the
    images of a smaller one and of more.
    """
    kept = ~pc.equal(table["split"].cast(pa.string()), "train").to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(~kept)
    codes, names = _class_codes(table["landmark_id"])
    counts = np.bincount(codes[rows], minlength=len(names))
    rank = np.empty(len(counts), dtype=np.int64)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    most = np.maximum(np.rint(counts.max() * (rank + 1.0) ** -config.tail), 1).astype(np.int64)
    if config.shots is not None:
        most = np.minimum(most, config.shots)
    keys = hash_strings(table["image_id"].take(pa.array(rows)), seed, _stream(config, HashStream.SUBSET_TAIL))
    rows, _, place = _places(rows, codes, keys)
    kept[rows[place < most[codes[rows]]]] = True
    return kept


def _class_codes(landmarks: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """Return each row's class as an integer and the classes' ids in a fixed order."""
    encoded = landmarks.combine_chunks() if isinstance(landmarks, pa.ChunkedArray) else landmarks
    if not pa.types.is_dictionary(encoded.type):
        encoded = encoded.dictionary_encode()
    order = pc.sort_indices(encoded.dictionary).to_numpy()
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return rank[encoded.indices.to_numpy(zero_copy_only=False)], encoded.dictionary.take(pa.array(order))


def _choose_classes(counts: np.ndarray, names: pa.Array, config: SubsetConfig, seed: int) -> np.ndarray:
    """Return a mask of the classes to keep: bool (classes,)."""
    enough = counts >= config.min_images
    chosen = enough.copy()
    if config.classes is None:
        return chosen
    available = np.flatnonzero(enough)
    if len(available) < config.classes:
        raise UserError(
            f"subset.classes is {config.classes}, but {len(available)} classes have at least {config.min_images} "
            "images; decrease subset.classes or subset.min_images"
        )
    if config.choose == "frequent":
        order = available[np.argsort(-counts[available], kind="stable")]
    else:
        keys = hash_strings(names.take(pa.array(available)), seed, _stream(config, HashStream.SUBSET_CLASSES))
        order = available[np.argsort(keys, kind="stable")]
    chosen[:] = False
    chosen[order[: config.classes]] = True
    return chosen


def _limit_classes(
    kept: np.ndarray, codes: np.ndarray, ids: pa.ChunkedArray, config: SubsetConfig, seed: int
) -> np.ndarray:
    """Keep up to max_images per class: bool (rows,)."""
    rows = np.flatnonzero(kept)
    keys = hash_strings(ids.take(pa.array(rows)), seed, _stream(config, HashStream.SUBSET_MAX_IMAGES))
    rows, _, place = _places(rows, codes, keys)
    return _mask(len(kept), rows[place < config.max_images])


def _limit_total(
    kept: np.ndarray, codes: np.ndarray, ids: pa.ChunkedArray, config: SubsetConfig, seed: int
) -> np.ndarray:
    """Keep `images` in total, with min_images per class or as many as possible for all: bool (rows,)."""
    assert config.images is not None
    rows = np.flatnonzero(kept)
    if len(rows) <= config.images:
        return kept
    keys = hash_strings(ids.take(pa.array(rows)), seed, _stream(config, HashStream.SUBSET_IMAGES))
    rows, keys, place = _places(rows, codes, keys)
    classes = int((place == 0).sum())
    least = min(config.min_images, config.images // classes)
    if least < 1:
        raise UserError(
            f"subset.images is {config.images}, but the subset contains {classes} classes; "
            "set it to at least one image per class, or decrease subset.classes"
        )
    priority = np.lexsort((keys, place >= least))
    return _mask(len(kept), rows[priority[: config.images]])


def _stream(config: SubsetConfig, stream: HashStream) -> HashStream:
    """Return the stream of a choice. With rule 1, all choices share the stream of the splits."""
    return HashStream.SPLIT if config.rule == 1 else stream


def _mask(length: int, rows: np.ndarray) -> np.ndarray:
    mask = np.zeros(length, dtype=bool)
    mask[rows] = True
    return mask


def _places(rows: np.ndarray, codes: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rows sorted by class and key, their keys, and each row's index in its class from 0."""
    order = np.lexsort((keys, codes[rows]))
    rows, keys = rows[order], keys[order]
    starts = np.flatnonzero(np.diff(codes[rows], prepend=-1))
    return rows, keys, np.arange(len(rows)) - np.repeat(starts, np.diff(np.append(starts, len(rows))))


def _license_mask(table: pa.Table, licenses: tuple[str, ...]) -> np.ndarray:
    if "license" not in table.column_names:
        raise UserError(
            "subset.licenses requires the licenses of the images; prepare the dataset with gldv2.attribution"
        )
    column = table["license"].combine_chunks()
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    values = column.dictionary.to_pylist()
    good = np.array([any(text in (value or "") for text in licenses) for value in values] + [False])
    codes = pc.fill_null(column.indices, len(values)).to_numpy(zero_copy_only=False)
    return good[codes]


def _landmark_mask(table: pa.Table, place: Location) -> np.ndarray:
    lines: dict[str, int] = {}
    for number, text in filled_lines(decode_text(place.read_bytes(), place.uri)):
        lines.setdefault(text, number)
    if not lines:
        raise UserError(f"{place}: contains no landmark id; expected one per line")
    wanted = pa.array(sorted(lines), pa.string())
    column = table["landmark_id"]
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    known = pc.unique(column).cast(kind).cast(pa.string())
    unknown_ids = wanted.filter(pc.invert(pc.is_in(wanted, known))).to_pylist()
    if unknown_ids:
        first = min(unknown_ids, key=lines.__getitem__)
        raise UserError(
            f"{place}: {len(unknown_ids)} of {len(wanted)} landmark ids are not in the dataset, such as {first!r} "
            f"(line {lines[first]}); remove them from the file"
        )
    return pc.is_in(column.cast(kind), wanted.cast(kind)).to_numpy(zero_copy_only=False)


def _where_mask(table: pa.Table, text: str) -> np.ndarray:
    """Evaluate comparisons of columns with constants, combined with and, or, not. Uses Python's syntax, without
    calls."""
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise UserError(f"subset.where: {text!r} at column {error.offset}: {error.msg}") from None
    try:
        mask = (
            table.select(_names(tree, table))
            .append_column("_row", pa.array(np.arange(len(table))))
            .filter(_expression(tree, text))["_row"]
        )
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid, TypeError) as error:
        raise UserError(
            f"subset.where: {text!r} cannot be compared ({error}); check the types of the constants"
        ) from None
    kept = np.zeros(len(table), dtype=bool)
    kept[mask.to_numpy()] = True
    return kept


def _names(tree: ast.expr, table: pa.Table) -> list[str]:
    names = sorted({node.id for node in ast.walk(tree) if isinstance(node, ast.Name)})
    for name in names:
        if name not in table.column_names:
            raise UserError(f"subset.where: no column '{name}'; {nearest(name, table.column_names)}")
    return names


def _expression(node: ast.expr, text: str) -> pc.Expression:
    if isinstance(node, ast.BoolOp):
        parts = [_expression(value, text) for value in node.values]
        joined = parts[0]
        for part in parts[1:]:
            joined = joined & part if isinstance(node.op, ast.And) else joined | part
        return joined
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return ~_expression(node.operand, text)
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        left, operator, right = _term(node.left, text), node.ops[0], node.comparators[0]
        if isinstance(operator, ast.In | ast.NotIn) and isinstance(right, ast.List | ast.Tuple):
            inside = left.isin([_constant(item, text) for item in right.elts])
            return ~inside if isinstance(operator, ast.NotIn) else inside
        if type(operator) in _COMPARISONS:
            return getattr(left, _COMPARISONS[type(operator)])(_term(right, text))
    raise UserError(f"subset.where: {text!r}: expected comparisons combined with and, or, not, such as width >= 300")


def _term(node: ast.expr, text: str) -> pc.Expression:
    if isinstance(node, ast.Name):
        return pc.field(node.id)
    return pc.scalar(_constant(node, text))


def _constant(node: ast.expr, text: str) -> object:
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise UserError(f"subset.where: {text!r}: expected a column or a constant, got {ast.unparse(node)}") from None
