"""Annotation files and the images that they are named after."""

from pathlib import Path

from cellseg.data.files_below import FilesBelow
from cellseg.data.importing.listing import some
from cellseg.data.importing.others import unread_images
from cellseg.errors import UserError


def find_image(path: Path, suffixes: tuple[str, ...], files: FilesBelow, decorations: tuple[str, ...] = ()) -> Path:
    """Find the image of an annotation file: ``a.tif`` for ``a.geojson`` or ``a.tif.geojson``.

    An image beside the file is preferred; one elsewhere counts if it is the only one of its name. Where no name fits, a
    folder with a single image and a single such file leaves no doubt.

    Args:
        suffixes: of the files, in lower case.
        decorations: what the file's name may have before that of the image, such as ``roiset_``.

    Raises:
        UserError: no image of that name, or several.
    """
    base = path.name
    for suffix in sorted(suffixes, key=len, reverse=True):
        if base.lower().endswith(suffix):
            base = base[: -len(suffix)]
            break
    else:
        base = path.stem
    bases = [base]
    for decoration in decorations:
        if base.lower().startswith(decoration):
            bases.append(base[len(decoration) :])
    # Then whatever stands before a mark: a_cells.geojson, a.tif - Series 1.geojson.
    bases += [base[:end] for end in range(len(base) - 1, 0, -1) if not base[end].isalnum() and base[:end].strip()]
    for name in bases:
        stem = Path(name).stem if "." in name else name
        candidates = files.images_named(name) or files.images_of_stem(name) or files.images_of_stem(stem)
        beside = [image for image in candidates if image.parent == path.parent]
        if len(beside or candidates) == 1:
            return (beside or candidates)[0]
        if candidates:
            raise UserError(
                f"{path}: must have one image of its name, but got {some([*map(files.relative, candidates)])}. "
                "Rename them, or put the file beside its image."
            )
    images = [image for image in files.images if image.parent == path.parent]
    others = [each for each in files.with_suffix(*suffixes) if each.parent == path.parent]
    if len(images) == len(others) == 1:
        return images[0]
    hint = unread_images(files) or "Copy it there."
    raise UserError(f"{path}: must have an image of its name, {base}.tif, .png or .jpg, but got none. {hint}")
