from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from undertone.errors import ConfigError
from undertone.registry import Registry

GROUP = "undertone_test.animals"


@pytest.fixture
def animals() -> Registry[str]:
    registry: Registry[str] = Registry("animal", GROUP)
    registry.register("owl")("hoo")
    registry.register("cat")("meow")
    return registry


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path that looks like an installed package with entry points."""
    info = tmp_path / "zoo_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: zoo-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[{GROUP}]\nfox = zoo_plugin:fox\nowl = zoo_plugin:owl\ndodo = zoo_plugin:nothing\n"
    )
    (tmp_path / "zoo_plugin.py").write_text("fox = 'ring-ding'\nowl = 'another owl'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("zoo_plugin", None)


def test_a_registered_thing_is_found_by_its_name(animals: Registry[str]) -> None:
    assert animals.get("owl") == "hoo"
    assert animals.names() == ["cat", "owl"]


def test_the_decorator_gives_back_what_it_registers() -> None:
    registry: Registry[type] = Registry("thing", GROUP)

    @registry.register("x")
    class Thing:
        pass

    assert registry.get("x") is Thing


def test_an_unknown_name_is_told_with_the_known_ones_and_the_nearest(
    animals: Registry[str],
) -> None:
    with pytest.raises(ConfigError, match=r"no animal is called 'ow1'\. Did you mean 'owl'\?") as e:
        animals.get("ow1")
    assert e.value.allowed == "cat, owl"
    assert GROUP in str(e.value)


def test_a_name_taken_is_refused(animals: Registry[str]) -> None:
    with pytest.raises(ConfigError, match="the animal 'owl' is registered twice"):
        animals.register("owl")("another")


def test_an_installed_package_is_listed_unloaded_and_loaded_on_demand(animals: Registry[str], plugin: Path) -> None:
    assert "fox" in animals.names()
    assert "zoo_plugin" not in sys.modules
    assert animals.get("fox") == animals.get("fox") == "ring-ding"


def test_a_package_may_not_take_a_name_of_ours(animals: Registry[str], plugin: Path) -> None:
    with pytest.raises(ConfigError, match="the animal 'owl' is registered twice"):
        animals.get("owl")


def test_a_package_that_does_not_load_is_named(animals: Registry[str], plugin: Path) -> None:
    with pytest.raises(ConfigError, match="'dodo' of the package zoo-plugin does not load"):
        animals.get("dodo")


def test_two_packages_with_one_name_are_refused(animals: Registry[str], plugin: Path) -> None:
    info = plugin / "other_zoo-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-zoo\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\nfox = other_zoo:fox\n")
    with pytest.raises(ConfigError, match=r"'fox' is offered by more than one") as error:
        animals.get("fox")
    assert "zoo-plugin" in str(error.value)
    assert "other-zoo" in str(error.value)
