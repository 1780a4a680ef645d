"""A trained model as a folder of its own, for machines that know nothing of the search.

checkpoint.json     the whole description: config, classes, category ids, versions; the folder is a checkpoint
model.safetensors   the weights
model.json          what other programs want to know: classes, ids, normalisation
load.py             loads the model and predicts an image
"""

from dataclasses import asdict
from pathlib import Path

from cellseg.checkpoint import DESCRIPTION, Checkpoint, write_safetensors
from cellseg.config import parse_normalization
from cellseg.errors import UserError
from cellseg.files import atomic_path, write_json

WEIGHTS, SUMMARY, LOADER = "model.safetensors", "model.json", "load.py"

LOADER_TEXT = '''"""Print the cells of an image: python load.py IMAGE. It needs the package cellseg-search."""

import json
import sys
from pathlib import Path

from safetensors.torch import load_file

from cellseg.config import TrialConfig
from cellseg.data.channels import PlaneChoice
from cellseg.data.images import read_image
from cellseg.inference.image import predict_image
from cellseg.model.build import build_model

folder = Path(__file__).parent
info = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))
config = TrialConfig.from_flat(info["config"])
model = build_model(config.model, config.inference, len(info["class_names"]), load=False)
model.load_state_dict(load_file(folder / info["weights"]))
cells = predict_image(model.eval(), read_image(Path(sys.argv[1]), PlaneChoice.of(config.data)), config)
for label, score, (x1, y1, x2, y2) in zip(cells.labels_N, cells.scores_N, cells.boxes_N4, strict=True):
    print(f"{info['class_names'][label - 1]} {score:.3f} {x1:.1f} {y1:.1f} {x2:.1f} {y2:.1f}")
'''


def export_model(checkpoint: Checkpoint, out: Path) -> None:
    """Write the model of a checkpoint into a new folder, as a whole or not at all.

    The folder names no place on this machine: that of the data and of pretrained weights are left out.

    Raises:
        UserError: damaged weights, a folder that is there and no exported model, or one that cannot be written.
    """
    if out.exists() and not (out / WEIGHTS).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: must be a new folder or an exported model, but got something else. Choose another.")
    info = checkpoint.info
    config = dict(info.config) | {"data.root": None, "model.weights_folder": None}
    mean, deviation = parse_normalization(checkpoint.config.model.normalization)
    weights = checkpoint.load_weights()
    with atomic_path(out) as temporary:
        temporary.mkdir()
        blake2b = write_safetensors(temporary / WEIGHTS, weights)
        description = asdict(info) | {
            "config": config,
            "weights": WEIGHTS,
            "weights_blake2b": blake2b,
            "training": None,
        }
        write_json(temporary / DESCRIPTION, description)
        write_json(
            temporary / SUMMARY,
            {
                "architecture": f"Mask R-CNN, {checkpoint.config.model.backbone} with a feature pyramid",
                "classes": [
                    {"label": label, "name": name, "category_id": category_id}
                    for label, (name, category_id) in enumerate(
                        zip(info.class_names, info.category_ids, strict=True), start=1
                    )
                ],
                "input": {
                    "channels": "RGB" if checkpoint.config.data.color == "rgb" else "luminance, three times",
                    "range": [0, 1],
                    "mean": list(mean),
                    "standard_deviation": list(deviation),
                },
                "metric": {"name": info.metric, "value": info.value},
            },
        )
        (temporary / LOADER).write_text(LOADER_TEXT, encoding="utf-8")
