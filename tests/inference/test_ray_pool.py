# SPDX-License-Identifier: Apache-2.0
"""Options, places and versions of a run on Ray, and its pool of actors on a Ray that only seems to run."""

import os
import sys
import types
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from monai_llmboost.inference.distributed.actor import actor_class
from monai_llmboost.inference.distributed.cluster import ActorSize, RayOptions, ray_options, size_actors
from monai_llmboost.inference.distributed.pool import AHEAD, ActorPool
from monai_llmboost.inference.distributed.units import Unit, make_units
from monai_llmboost.inference.distributed.worker import Setup, _check_places, is_portable


class RayError(Exception):
    pass


class FakeRay:
    """Answers at once, in the order of calls; ``kills(content)`` says whether an actor ends with its work."""

    exceptions = types.SimpleNamespace(
        RayError=RayError,
        RayTaskError=type("RayTaskError", (RayError,), {}),
        ObjectLostError=type("ObjectLostError", (RayError,), {}),
        ActorUnavailableError=type("ActorUnavailableError", (RayError,), {}),
    )
    cloudpickle = types.SimpleNamespace(dumps=lambda value: b"")
    put = staticmethod(lambda value: value)

    def __init__(self, kills=lambda content: False, start=("cpu", "node"), alive=True):
        self.kills, self.answer_of_start, self.alive = kills, start, alive
        self.answers = {}
        self.made = self.killed = self.most = 0

    def remote(self, **resources):
        return lambda cls: types.SimpleNamespace(remote=self.new_actor)

    def new_actor(self):
        self.made += 1
        dead = []

        def predict(*content):
            if dead or self.kills(content):
                dead.append(content)
                return self.call(RayError("ended"))
            return self.call([content])

        method = lambda function: types.SimpleNamespace(remote=function)  # noqa: E731
        return types.SimpleNamespace(start=method(lambda *_: self.call(self.answer_of_start)), predict=method(predict))

    def call(self, answer):
        self.answers[name := object()] = answer
        self.most = max(self.most, len(self.answers))
        return name

    def wait(self, names, timeout):
        return names[:1], names[1:]

    def get(self, name):
        answer = self.answers.pop(name)
        if isinstance(answer, RayError):
            raise answer
        return answer

    def kill(self, handle):
        self.killed += 1

    def nodes(self):
        return [{"NodeID": "node", "Alive": self.alive}]


def pool_of(ray, actors=2):
    return ActorPool(ray, ActorSize(1, 0, actors), None, lambda unit: (unit,))


def test_few_units_are_in_flight_however_many_there_are():
    ray = FakeRay()
    pool = pool_of(ray)
    pool.add([Unit([[case]]) for case in range(1000)])
    done = [unit.cases[0] for unit, rows in pool.run() if rows]
    assert sorted(done) == list(range(1000))
    assert ray.most <= 2 * AHEAD
    assert ray.made == 2
    pool.end()
    assert ray.killed == 2


def test_only_the_unit_with_which_an_actor_ended_is_to_blame():
    ray = FakeRay(kills=lambda content: content[0].cases == [3])
    pool = pool_of(ray)
    pool.add([Unit([[case]]) for case in range(10)])
    ended = [(unit.cases[0], rows is None) for unit, rows in pool.run() if rows != []]
    assert sorted(ended) == [(case, case == 3) for case in range(10)]
    assert ray.made == 3


def test_a_lost_machine_is_no_fault_of_a_case():
    lost = []

    def kills(content):
        lost.append(content)
        return len(lost) == 1

    ray = FakeRay(kills, alive=False)
    pool = pool_of(ray, actors=1)
    pool.add([Unit([[case]]) for case in range(3)])
    assert sorted(unit.cases[0] for unit, rows in pool.run() if rows) == [0, 1, 2]


@pytest.mark.parametrize("error", ["ObjectLostError", "ActorUnavailableError"])
def test_a_lost_answer_is_asked_for_again(error, monkeypatch):
    ray = FakeRay()
    get, lost = ray.get, []

    def lose_once(name):
        if isinstance(ray.answers[name], list) and not lost:
            lost.append(name)
            raise getattr(ray.exceptions, error)
        return get(name)

    monkeypatch.setattr(ray, "get", lose_once)
    pool = pool_of(ray)
    pool.add([Unit([[case]]) for case in range(5)])
    ended = [unit.cases[0] for unit, rows in pool.run() if rows != []]
    assert sorted(ended) == list(range(5))
    assert lost


def test_errors_that_end_the_run():
    pool = pool_of(FakeRay(start="monai-llmboost is not installed there"))
    pool.add([Unit([[0]])])
    with pytest.raises(ValueError, match="is not installed there"):
        list(pool.run())
    pool = pool_of(FakeRay(start=RayError("ended")))
    pool.add([Unit([[0]])])
    with pytest.raises(RuntimeError, match=r"3 actors in a row ended .*: give fewer --actors"):
        list(pool.run())
    ray = FakeRay()
    pool = pool_of(ray)
    ray.call = lambda answer, call=ray.call: call(OSError(28, "disk full") if isinstance(answer, list) else answer)
    pool.add([Unit([[0]])])
    with pytest.raises(OSError, match="disk full"):
        list(pool.run())


def test_what_is_done_again():
    units = make_units([[0, 1, 2], [3, 4], [5]], actors=1, num_workers=0)
    assert [unit.cases for unit in units] == [[0, 1, 2], [3, 4], [5]]
    several = make_units([[case] for case in range(100)], actors=2, num_workers=4)
    assert [case for unit in several for case in unit.cases] == list(range(100))
    assert len(several) >= 4, "each actor has work"
    assert len(several[0].batches) == 16, "and its readers read ahead"
    (first, *_) = several[0].after_death()
    assert first == Unit([[0]], deaths=1)
    assert units[0].after_death() == [replace(units[0], deaths=1)], "once may be chance"
    alone = units[0].after_death()[0].after_death()
    assert alone == [Unit([[0, 1, 2]], only=case, deaths=1) for case in range(3)]
    assert alone[0].after_death() == units[2].after_death()[0].after_death() == []


MACHINES = [
    {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}},
    {"Alive": True, "Resources": {"CPU": 4.0}},
    {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
]


@pytest.mark.parametrize(
    ("options", "num_workers", "on_cpu", "size"),
    [
        ({}, 0, False, ActorSize(1, 1, 2)),
        ({}, 3, False, ActorSize(4, 1, 2)),
        ({}, 0, True, ActorSize(1, 0, 12)),
        ({"gpus_per_actor": 0, "cpus_per_actor": 3}, 0, False, ActorSize(3, 0, 3)),
        ({"gpus_per_actor": 0.5}, 0, False, ActorSize(1, 0.5, 4)),
        ({"actors": 1}, 0, False, ActorSize(1, 1, 1)),
    ],
)
def test_sizes_of_actors(options, num_workers, on_cpu, size):
    assert size_actors(RayOptions(**options), MACHINES, num_workers, on_cpu) == size


def test_no_machine_is_large_enough():
    with pytest.raises(ValueError, match="no machine of the Ray cluster has 16 CPUs and 1 GPUs for an actor"):
        size_actors(RayOptions(cpus_per_actor=16), MACHINES, 0, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rai", None, None, None, None), "unknown engine 'rai'; choose from local, ray; did you mean ray"),
        (("local", "auto", None, None, None), "--address is for --engine ray, not for --engine local"),
        (("local", None, 2, None, None), "--actors is for --engine ray"),
        (("local", None, None, 2, None), "--cpus-per-actor is for --engine ray"),
        (("local", None, None, None, 0.0), "--gpus-per-actor is for --engine ray"),
    ],
)
def test_options_of_other_engines(arguments, message):
    with pytest.raises(ValueError, match=message):
        ray_options(*arguments)


def test_wrong_options(monkeypatch):
    with pytest.raises(ValueError, match="--actors must be a whole number from 1, not 0"):
        RayOptions(actors=0).check()
    with pytest.raises(ValueError, match="--cpus-per-actor must be a whole number from 1, not 0"):
        RayOptions(cpus_per_actor=0).check()
    with pytest.raises(ValueError, match="--gpus-per-actor must be 0 or more, not -1"):
        RayOptions(gpus_per_actor=-1).check()
    with pytest.raises(ValueError, match="--device cuda:1 has no effect with --engine ray: give --gpus-per-actor"):
        RayOptions().check("cuda:1")
    with pytest.raises(ConnectionError, match=r"no Ray cluster answers at ray://127.0.0.1:1 \(.+\): start it there"):
        RayOptions("ray://127.0.0.1:1").check()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="start one process, without torchrun"):
        RayOptions().check()


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"--engine ray needs Ray.*pip install 'monai-llmboost\[ray\]'"):
        RayOptions().check()


@pytest.fixture
def setup(tmp_path, monkeypatch):
    """A setup whose places are all there."""
    monkeypatch.chdir(tmp_path)
    for name in ("out/journal/marker", "bundle/configs/inference.json", "scan.nii"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    config = str(tmp_path / "bundle/configs/inference.json")
    output = tmp_path / "out/journal/marker"
    return Setup({"config_file": [config]}, tmp_path, output, [Path("scan.nii")], "key", 1)


def test_folders_that_a_machine_does_not_see(setup, tmp_path):
    _check_places(setup)
    for changes, message in (
        ({"directory": tmp_path / "no"}, "the working directory .*no is not on .*: start the run in a folder that all"),
        (
            {"output": tmp_path / "out/journal/no"},
            "does not see the output folder .*out: give a folder that all",
        ),
        ({"arguments": {"config_file": ["no.json"]}}, r"does not see no\.json: give a bundle in a folder that all"),
        ({"inputs": [Path("Doe.nii")]}, "does not see the scans: give an input folder that all machines share"),
    ):
        with pytest.raises(ValueError, match=message) as raised:
            _check_places(replace(setup, **changes))
        assert "Doe" not in str(raised.value)


def test_an_actor_on_a_machine_with_another_version(monkeypatch):
    monkeypatch.setattr(os, "dup2", lambda *streams: None)  # it closes its output
    start = partial(actor_class()().start, setup=b"")
    assert "and the process that started the run 9.9: install the same everywhere" in start("9.9")
    monkeypatch.setitem(sys.modules, "monai_llmboost", None)
    assert "monai-llmboost is not installed for Ray on" in start("9.9")


def test_which_errors_can_be_sent():
    class Local(Exception):
        pass

    assert is_portable(OSError(28, "disk full"))
    assert not is_portable(Local("x"))
