"""Files that are recognised but not read: what they are, and how to get ones that are."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from cellseg.data.files_below import FilesBelow, mentions
from cellseg.names import counted

_HEAD_BYTES = 4096
_MICROSCOPES = (".czi", ".lif", ".nd2", ".oib", ".oif", ".vsi", ".lsm", ".ims", ".dv", ".stk")
_SLIDES = (".svs", ".ndpi", ".mrxs", ".scn", ".bif")
_PICTURES = (".bmp", ".gif", ".webp", ".jp2", ".jxl", ".heic")


def _head(text: bytes) -> Callable[[Path], bool]:
    def begins(path: Path) -> bool:
        try:
            with path.open("rb") as file:
                return text in file.read(_HEAD_BYTES)
        except OSError:
            return False

    return begins


def _keys(*names: str) -> Callable[[Path], bool]:
    return lambda path: mentions(path, *names)


_ANNOTATIONS: tuple[tuple[str, tuple[str, ...], Callable[[Path], bool], str], ...] = (
    ("XML files of Pascal VOC", (".xml",), _head(b"<annotation>"), "They hold boxes: export polygons or masks."),
    ("XML files of Aperio ImageScope", (".xml",), _head(b"<Annotations"), "Open them in QuPath and export GeoJSON."),
    ("XML files of ASAP", (".xml",), _head(b"<ASAP_Annotations"), "Open them in QuPath and export GeoJSON."),
    ("JSON files of Label Studio", (".json",), _keys("from_name", "to_name"), "Export them as COCO or YOLO."),
    ("JSON files of Supervisely", (".json",), _keys("objects", "geometryType"), "Export them as COCO."),
    ("NDJSON files of Labelbox", (".ndjson",), lambda path: True, "Export them as COCO."),
)
"""Description, suffixes, look into the file, remedy."""


def unread_images(files: FilesBelow) -> str:
    """Name the images of a folder that no reader here takes, with the way out, in a sentence; empty if there are
    none."""
    found = []
    for suffixes, remedy in (
        (_MICROSCOPES, "Save them as OME-TIFF, for instance in Fiji."),
        (_SLIDES, "Export regions of them as TIFF, for instance in QuPath."),
        (_PICTURES, "Save them as PNG."),
    ):
        counts = Counter(path.suffix.lower() for path in files.with_suffix(*suffixes))
        if counts:
            seen = " and ".join(counted(count, f"{suffix} file") for suffix, count in sorted(counts.items()))
            found.append(f"I see {seen}: not read. {remedy}")
    return " ".join(found)


def unread_annotations(files: FilesBelow) -> str:
    """Name the annotation files of a folder that no reader here takes, as :func:`unread_images` does."""
    found = []
    for description, suffixes, is_one, remedy in _ANNOTATIONS:
        count = sum(is_one(path) for path in files.with_suffix(*suffixes))
        if count:
            found.append(f"I see {description} ({count}): not read. {remedy}")
    return " ".join(found)
