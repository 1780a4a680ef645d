"""GeoJSON as QuPath exports it: a file of objects for each image, in pixels of the full image."""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellseg.data.files_below import FilesBelow, mentions
from cellseg.data.importing.listing import Item, Listing, note_unannotated
from cellseg.data.importing.options import ImportOptions
from cellseg.data.importing.pairs import find_image
from cellseg.data.importing.shapes import Outlines, ring_of
from cellseg.errors import UserError

_SUFFIXES = (".geojson", ".geojson.gz", ".geo.json", ".json.gz")
_NO_AREA = ("Point", "MultiPoint", "LineString", "MultiLineString")
_MAX_BYTES = 1_000_000_000
"""Of an unpacked file: a packed one of some bytes can hold any number."""


@dataclass(frozen=True)
class _Object:
    kind: str
    """annotation, detection, cell, tile, ..."""
    class_name: str | None
    outlines: Outlines


def find(files: FilesBelow) -> list[Path]:
    """List GeoJSON files: by suffix, and other JSON files with features."""
    named = files.with_suffix(*_SUFFIXES)
    others = [
        path
        for path in files.with_suffix(".json")
        if path not in named and mentions(path, "type", "geometry", "coordinates")
    ]
    return sorted([*named, *others])


def read(files: FilesBelow, options: ImportOptions) -> Listing:
    """List the images of GeoJSON files of the same name. Where some objects are cells or detections, annotations are
    regions around them and are left out."""
    listing = Listing()
    objects_of: dict[Path, list[_Object]] = {}
    paths_of: dict[Path, Path] = {}
    for path in find(files):
        try:
            image = find_image(path, _SUFFIXES, files)
            if image in paths_of:
                raise UserError(
                    f"{path}: must be the only file of its image {image.name}, but got {paths_of[image].name} too. "
                    "Remove one."
                )
            objects_of[image] = list(_read_file(path, options, listing))
            paths_of[image] = path
        except UserError as error:
            listing.problems += error.problems
    has_cells = any(each.kind in ("cell", "detection") for objects in objects_of.values() for each in objects)
    for image, objects in objects_of.items():
        kept = [each for each in objects if not (has_cells and each.kind == "annotation")]
        if len(kept) < len(objects):
            listing.skipped["annotations, as there are cells or detections inside"] += len(objects) - len(kept)
        cells = tuple((each.class_name or options.class_name, each.outlines) for each in kept)
        listing.items.append(Item(image, cells, (paths_of[image],)))
    note_unannotated(listing, files, "a GeoJSON file")
    return listing


def _read_file(path: Path, options: ImportOptions, listing: Listing) -> Iterator[_Object]:
    problems = []
    for index, feature in enumerate(_features(_parse(path), path)):
        where = f"{path}: feature {index}"
        geometry = feature.get("geometry") if isinstance(feature, dict) else None
        if not isinstance(geometry, dict):
            problems.append(f"{where}: must have a geometry, but got {str(feature)[:60]}.")
            continue
        properties = feature.get("properties")
        properties = properties if isinstance(properties, dict) else {}
        kind = _kind(feature, properties)
        class_name = _class_name(properties, options)
        if kind in ("root", "tile", "tma core"):
            listing.skipped[f"objects of type {kind}"] += 1
        elif class_name is not None and class_name.endswith("*"):
            listing.skipped[f"objects of class {class_name}, which QuPath ignores"] += 1
        elif geometry.get("type") in _NO_AREA:
            listing.skipped[f"objects of type {geometry['type']}, which enclose no cell"] += 1
        else:
            try:
                parts = tuple(_parts(geometry))
            except ValueError as error:
                problems.append(f"{where}: {error}")
            else:
                yield _Object(kind, class_name, Outlines(parts))
    if problems:
        raise UserError(*problems)


def _parse(path: Path) -> Any:
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            with gzip.open(path) as file:
                data = file.read(_MAX_BYTES)
        return json.loads(data.decode("utf-8-sig"))
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: must be a readable file, but got '{error}'. Export it again.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: must be valid JSON, but got: {str(error)[:100]}. Export it again.") from error


def _features(content: Any, path: Path) -> list[Any]:
    """The features of a collection, of a bare list as older QuPath writes it, or of a file with a single one."""
    if isinstance(content, dict) and isinstance(content.get("features"), list):
        return content["features"]
    if isinstance(content, dict) and content.get("type") == "Feature":
        return [content]
    if isinstance(content, list):
        return content
    raise UserError(f"{path}: must be a FeatureCollection or a list of features. Export the objects as GeoJSON.")


def _kind(feature: dict, properties: dict) -> str:
    """What QuPath calls the object: ``objectType``, or the id in older versions, such as PathCellObject."""
    kind = properties.get("objectType") or properties.get("object_type")
    if not isinstance(kind, str):
        identity = feature.get("id")
        named = re.fullmatch("Path(.+)Object", identity) if isinstance(identity, str) else None
        kind = named[1] if named else "annotation"
    return kind.lower().replace("_", " ").replace("tmacore", "tma core")


def _class_name(properties: dict, options: ImportOptions) -> str | None:
    """The class: QuPath's classification, else a property that other tools use; None where there is none."""
    keys = (options.class_key,) if options.class_key else ("classification", "class", "label", "category")
    for key in keys:
        value = properties.get(key)
        if isinstance(value, dict):
            names = value.get("names")
            value = ": ".join(map(str, names)) if isinstance(names, list) and names else value.get("name")
        if isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip():
            return str(value).strip()
    return None


def _parts(geometry: dict) -> Iterator[tuple[Any, ...]]:
    """The polygons of a geometry, each as its rings.

    Raises:
        ValueError: no polygons; the message follows on ``where: ``.
    """
    coordinates = geometry.get("coordinates")
    match geometry.get("type"):
        case "Polygon" if isinstance(coordinates, list) and coordinates:
            yield tuple(ring_of(ring) for ring in coordinates)
        case "MultiPolygon" if isinstance(coordinates, list) and coordinates:
            for polygon in coordinates:
                yield from _parts({"type": "Polygon", "coordinates": polygon})
        case "GeometryCollection" if isinstance(geometry.get("geometries"), list):
            for part in geometry["geometries"]:
                if isinstance(part, dict) and part.get("type") not in _NO_AREA:
                    yield from _parts(part)
        case _:
            raise ValueError(f"geometry must be a polygon with coordinates, but got {str(geometry)[:60]}.")
