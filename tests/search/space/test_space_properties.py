"""Properties of the space language, on random spaces and on broken ones."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import yaml
from examples import broken, property_test
from hypothesis import strategies as st
from spacefiles import FULL

from cellseg.errors import UserError
from cellseg.files import parse_yaml
from search.space import Choices, load_space, parse_space
from search.space.conditions import holds


@st.composite
def ranges(draw: st.DrawFn, low: float, high: float, *, log: bool = True) -> dict[str, Any]:
    """A range of floats within bounds."""
    first, second = sorted(draw(st.lists(st.floats(low, high), min_size=2, max_size=2, unique=True)))
    return {"low": first, "high": second} | ({"log": draw(st.booleans())} if log else {})


@st.composite
def steps(draw: st.DrawFn, low: int, high: int) -> dict[str, Any]:
    """A range of integers within bounds, perhaps with a step or in the logarithm."""
    first, step = draw(st.integers(low, high - 1)), draw(st.integers(1, 3))
    count = draw(st.integers(1, max(1, (high - first) // step)))
    if first + step * count > high:
        step, count = 1, high - first
    shape = draw(st.sampled_from([{}, {"log": True}, {"step": step}])) if step * count else {}
    return {"low": first, "high": first + step * count, "type": "int"} | shape


def some(values: list) -> st.SearchStrategy[dict[str, Any]]:
    """Some of these values as choices."""
    return st.lists(st.sampled_from(values), min_size=1, max_size=len(values), unique=True).map(
        lambda chosen: {"choices": chosen}
    )


@st.composite
def contents(draw: st.DrawFn) -> dict[str, Any]:
    """The content of a space file in which nothing is wrong."""
    metric, direction = draw(
        st.sampled_from([("segm/AP50", "maximize"), ("segm/AP", "maximize"), ("loss/validation", "minimize")])
    )
    epochs = draw(st.integers(1, 50))
    content: dict[str, Any] = {
        "metric": metric,
        "direction": direction,
        "trials": draw(st.integers(1, 10**6)),
        "epochs": epochs,
    }
    optional = {
        "seed": st.integers(0, 2**31),
        "keep": st.integers(1, 9),
        "max_slots": st.integers(1, 9),
        "asha": st.sampled_from([False, True, {"grace": 1}, {"grace": 2, "reduction": 4}, {"reduction": 2}]),
        "resources": st.sampled_from([{"cpu": 2}, {"cpu": 1, "gpu": 0.5}, {"gpu": 1, "labels": {"zone": "in(a, b)"}}]),
        "limits": st.sampled_from([{"hours": 2.5}, {"plateau_trials": 3}, {"target": 0.5}]),
        "stall": st.sampled_from([{"epochs": 5}, {"minutes": 1.5}]),
        "data": st.sampled_from([{"root": "some/where"}, {"generate": {"train": 9, "test": 3, "seed": 1, "size": 64}}]),
    }
    keys: dict[str, st.SearchStrategy[Any]] = {
        "optim.lr": ranges(1e-6, 1.0),
        "optim.weight_decay": ranges(1e-8, 0.5),
        "model.roi_samples": steps(8, 512),
        "train.batch_size": st.one_of(steps(1, 32), some([1, 2, 4, 8])),
        "optim.clip_norm": some([None, 1, 2.5, 10.0]),
        "model.norm": some(["group", "batch"]),
        "model.backbone": some(["resnet18", "resnet34"]),
        "model.rpn_proposals": steps(10, 400),
    }
    for name, values in optional.items():
        if draw(st.booleans()):
            content[name] = draw(values)
    space: dict[str, Any] = {"model.weights": "none"}
    for key in draw(st.lists(st.sampled_from(sorted(keys)), min_size=1, max_size=5, unique=True)):
        space[key] = draw(keys[key])
    if draw(st.booleans()):
        space["optim.momentum"] = draw(ranges(0.5, 0.99, log=False)) | {"when": {"optim.optimizer": "sgd"}}
        space["optim.optimizer"] = {"choices": ["sgd", "adamw"]}
    if draw(st.booleans()):
        space["augment.preset"] = {"choices": ["none", "flips", "full"]}
        space["augment.strength"] = draw(ranges(0, 1, log=False)) | {"when": {"augment.preset": ["full"]}}
    content["space"] = dict(draw(st.permutations(list(space.items()))))
    return content


@property_test(few=8, many=400, content=contents())
def test_a_space_that_is_written_back_is_the_same_space(content):
    space = parse_space(content, "s.yaml")
    again = parse_space(space.to_json(), "s.yaml")
    assert again == space
    assert again.fingerprint == space.fingerprint
    for text in (yaml.safe_dump(content, sort_keys=False), yaml.safe_dump(space.to_json(), sort_keys=False)):
        assert parse_space(parse_yaml(text), "s.yaml") == space


@property_test(few=8, many=300, content=contents(), seed=st.integers(0, 2**32))
def test_what_is_drawn_lies_in_the_domains_and_obeys_the_conditions(content, seed):
    space, rng = parse_space(content, "s.yaml"), np.random.default_rng(seed)
    for _ in range(10):
        params = space.sample(rng)
        values = space.values(params)
        for key, domain in space.domains.items():
            assert (key in params) == holds(domain.when, values), key
            assert key not in params or domain.contains(params[key]), (key, params)
            if key in params and isinstance(domain, Choices):
                assert type(params[key]) in {type(choice) for choice in domain.choices}
        config = space.config(params, seed=seed % 1000).to_flat()
        assert params.items() <= config.items()


@property_test(few=40, many=2000, content=broken(parse_yaml(FULL)))
def test_a_broken_space_is_the_users_error_and_nothing_else(content):
    try:
        parse_space(content, "s.yaml")
    except UserError as error:
        assert all(problem.startswith("s.yaml: ") for problem in error.problems)


@st.composite
def texts(draw: st.DrawFn) -> bytes:
    """The text of a space file in which characters were changed, removed or put in."""
    text = FULL
    for _ in range(draw(st.integers(1, 4))):
        place, length = draw(st.integers(0, len(text))), draw(st.integers(0, 5))
        put = draw(st.one_of(st.text(max_size=3), st.sampled_from(["{", "}", ": ", "- ", "&a ", "*a", "!!int ", "\t"])))
        text = text[:place] + put + text[place + length :]
    return text.encode("utf-8", "surrogatepass")


@property_test(
    few=25,
    many=1500,
    text=st.one_of(texts(), st.binary(max_size=60)),
    overrides=st.lists(
        st.sampled_from(
            [
                "optim.lr=1e-3",
                "optim.optimizer=adamw",
                "trials=0",
                "asha=off",
                "asha.grace=x",
                "space=3",
                "a=",
                "=",
                "x",
            ]
        ),
        max_size=2,
    ),
)
def test_a_broken_file_is_the_users_error_and_nothing_else(text, overrides):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "s.yaml"
        path.write_bytes(text)
        try:
            load_space(path, overrides)
        except UserError as error:
            assert error.problems
