"""How slots are divided among studies; nodes are as Ray describes them."""

import random

import pytest

from search.cluster import shares
from search.cluster.shares import HALF_LIFE, NAMESPACE, SILENT_SECONDS, Claim, Register, Usage, fair_slots
from search.cluster.slots import slots_of

GPU_TRIAL = {"cpu": 4, "gpu": 1}
CPU_TRIAL = {"cpu": 1, "gpu": 0}


def node(name: str = "n", labels: dict | None = None, **resources: float) -> dict:
    return {"NodeID": name, "Resources": resources, "Labels": labels or {}, "Alive": True}


def test_two_equal_studies_get_half_each():
    nodes = [node(CPU=32.0, GPU=8.0)]
    claims = [Claim("a", GPU_TRIAL, 100), Claim("b", GPU_TRIAL, 100)]
    assert fair_slots(nodes, claims) == {"a": 4, "b": 4}


def test_a_study_of_twice_the_priority_gets_twice_the_slots():
    nodes = [node(CPU=36.0, GPU=9.0)]
    claims = [Claim("a", GPU_TRIAL, 100), Claim("b", GPU_TRIAL, 100, priority=2)]
    assert fair_slots(nodes, claims) == {"a": 3, "b": 6}


def test_a_study_of_low_priority_has_its_turns_at_a_single_slot():
    nodes, usage, served, now = [node(CPU=1.0)], {"high": Usage(), "low": Usage()}, [], 0.0
    for _ in range(80):
        claims = [Claim(name, CPU_TRIAL, 5, usage[name].seconds, priority=3 if name == "high" else 1) for name in usage]
        (winner,) = [name for name, slots in fair_slots(nodes, claims).items() if slots]
        served.append(winner)
        now += 400
        for name, used in usage.items():
            used.add(int(name == winner), now)
    assert served.count("low") == pytest.approx(20, abs=5)


def test_what_one_does_not_ask_for_goes_to_the_other():
    nodes = [node(CPU=32.0, GPU=8.0)]
    claims = [Claim("a", GPU_TRIAL, 1), Claim("b", GPU_TRIAL, 100), Claim("c", GPU_TRIAL, 0)]
    assert fair_slots(nodes, claims) == {"a": 1, "b": 7, "c": 0}


def test_studies_that_need_different_machines_do_not_share_them():
    nodes = [node("fast", {"zone": "a"}, CPU=8.0, GPU=2.0), node("slow", {"zone": "b"}, CPU=8.0, GPU=2.0)]
    claims = [
        Claim("a", GPU_TRIAL | {"labels": {"zone": "a"}}, 9),
        Claim("b", GPU_TRIAL | {"labels": {"zone": "!a"}}, 9),
    ]
    assert fair_slots(nodes, claims) == {"a": 2, "b": 2}
    avoiding = [Claim("a", GPU_TRIAL, 9, avoided=("fast",)), Claim("b", GPU_TRIAL, 9)]
    assert fair_slots(nodes, avoiding) == {"a": 2, "b": 2}


def test_a_study_on_cpus_leaves_the_cpus_of_gpu_trials():
    nodes = [node(CPU=8.0, GPU=2.0)]
    shared = fair_slots(nodes, [Claim("cpus", CPU_TRIAL, 100), Claim("gpus", GPU_TRIAL, 100)])
    assert shared == {"cpus": 4, "gpus": 1}, "half of the CPUs, half of the GPUs"


def test_more_studies_than_slots_take_turns():
    nodes, usage = [node(CPU=1.0)], {name: Usage() for name in "abc"}
    served, now = [], 0.0
    for _ in range(60):
        claims = [Claim(name, CPU_TRIAL, 5, usage[name].seconds) for name in "abc"]
        given = fair_slots(nodes, claims)
        (winner,) = [name for name, slots in given.items() if slots]
        served.append(winner)
        now += 400
        for name, used in usage.items():
            used.add(int(name == winner), now)
    assert {name: served.count(name) for name in "abc"} == {name: pytest.approx(20, abs=3) for name in "abc"}


def test_alone_a_study_gets_what_it_has_room_for():
    rng = random.Random(3)
    for _ in range(50):
        nodes = [node(CPU=float(rng.randint(1, 32)), GPU=float(rng.randint(0, 4)), memory=2.0**35) for _ in range(4)]
        gpu = rng.choice([0, 0.3, 0.5, 1])
        wanted = {"cpu": rng.choice([0.5, 1, 3]), "gpu": gpu, "memory": rng.choice([1, 9])}
        expected = sum(slots_of(each, wanted) for each in nodes)
        assert fair_slots(nodes, [Claim("a", wanted, 1000)]) == {"a": expected}


def test_the_division_never_gives_more_than_there_is_and_leaves_nothing():
    rng = random.Random(5)
    for _ in range(30):
        nodes = [node(str(n), CPU=float(rng.randint(1, 16)), GPU=float(rng.randint(0, 4))) for n in range(3)]
        claims = [
            Claim(name, {"cpu": rng.choice([1, 2]), "gpu": rng.choice([0, 1])}, rng.randint(0, 12)) for name in "abc"
        ]
        given = fair_slots(nodes, claims)
        used = {kind: sum(given[c.study] * c.resources[kind] for c in claims) for kind in ("cpu", "gpu")}
        assert used["cpu"] <= sum(n["Resources"]["CPU"] for n in nodes)
        assert used["gpu"] <= sum(n["Resources"]["GPU"] for n in nodes)
        assert all(given[c.study] <= c.demand for c in claims)
        alone = fair_slots(nodes, [max(claims, key=lambda claim: claim.demand)])
        assert sum(given.values()) > 0 or not any(alone.values())


def test_usage_counts_running_trials_and_fades():
    usage = Usage()
    usage.add(4, 100.0)
    assert usage.seconds == 0, "nothing is known of before"
    usage.add(2, 110.0)
    assert usage.seconds == 20
    usage.add(0, 110.0 + HALF_LIFE)
    assert usage.seconds == pytest.approx(10)


class Store:
    """Ray's key-value store, in a dict."""

    def __init__(self, monkeypatch):
        self.content: dict[str, bytes] = {}
        monkeypatch.setattr(shares.internal_kv, "_internal_kv_put", self._put)
        monkeypatch.setattr(shares.internal_kv, "_internal_kv_get", lambda key, namespace: self.content.get(key))
        monkeypatch.setattr(
            shares.internal_kv, "_internal_kv_list", lambda prefix, namespace: [key.encode() for key in self.content]
        )
        monkeypatch.setattr(shares.internal_kv, "_internal_kv_del", lambda key, namespace: self.content.pop(key, None))

    def _put(self, key, value, overwrite, namespace):
        assert overwrite and namespace == NAMESPACE
        self.content[key] = value.encode()


def test_drivers_know_of_each_other_until_they_leave(monkeypatch):
    store = Store(monkeypatch)
    a, b = Register("a"), Register("b")
    mine = Claim("a", GPU_TRIAL | {"labels": {"zone": "x"}}, 3, 1.5, ("n1",))
    assert a.publish(mine) == []
    assert b.publish(Claim("b", CPU_TRIAL, 1)) == [mine], "as it was told"
    assert [claim.study for claim in a.publish(mine)] == ["b"]
    b.withdraw()
    assert a.publish(mine) == []
    assert set(store.content) == {"a"}


def test_a_driver_that_died_is_left_out_after_a_while_whatever_the_clocks_say(monkeypatch):
    store = Store(monkeypatch)
    now = [5000.0]
    a, b = Register("a", clock=lambda: now[0]), Register("b", clock=lambda: -1e9)
    b.publish(Claim("b", CPU_TRIAL, 1))
    mine = Claim("a", CPU_TRIAL, 1)
    assert len(a.publish(mine)) == 1
    now[0] += SILENT_SECONDS - 1
    assert len(a.publish(mine)) == 1
    now[0] += 2
    assert a.publish(mine) == []
    assert set(store.content) == {"a"}
    b.publish(Claim("b", CPU_TRIAL, 1))
    assert len(a.publish(mine)) == 1, "it had only been stopped"


@pytest.mark.parametrize("content", [b"", b"no json", b"[]", b'{"beat": 1, "claim": {"study": "x"}}'])
def test_an_entry_that_this_version_cannot_read_is_passed_over(monkeypatch, content):
    store = Store(monkeypatch)
    store.content["odd"] = content
    assert Register("a").publish(Claim("a", CPU_TRIAL, 1)) == []
