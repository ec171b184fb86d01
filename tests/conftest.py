"""Fixtures every test file shares; the hub is never asked."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from app.reward import loading
from app.reward.engine import Engine
from app.settings import Settings
from tests.support import browsers, page_models, tiny
from tests.support import training_setup as workshops
from tests.support.servers import listening


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """What runs async tests."""
    return "asyncio"


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny backbone and three bundles; not to be changed."""
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="session")
def settings(root: Path) -> Settings:
    """Settings of the tiny world."""
    return tiny.build_models(root)


@pytest.fixture(scope="session")
def engine(settings: Settings) -> Engine:
    """A tiny engine with three models at three depths."""
    return loading.load_engine(settings, lambda *_: None)


@pytest.fixture(scope="session")
def address(engine: Engine, settings: Settings) -> Iterator[str]:
    """A tiny server on a socket of its own."""
    with listening(engine, settings) as found:
        yield found


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A tiny backbone, chats and pairs to train on."""
    return workshops.build(tmp_path_factory.mktemp("workshop"))


@pytest.fixture(scope="session")
def made_sae(workshop: Settings) -> Path:
    """An SAE of the tiny backbone."""
    return workshops.build_sae(workshop)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser; it goes when the module ends, because its event loop would stand in the way of others."""
    with browsers.launch_chromium() as found:
        yield found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server worth looking at."""
    engine, settings = page_models.build_models(tmp_path_factory.mktemp("gallery"))
    with listening(engine, settings) as found:
        yield found


@pytest.fixture
def page(browser: Browser, world: str) -> Iterator[Page]:
    """The page at that server, scored for the first time."""
    with browsers.open_scored_page(browser, world) as found:
        yield found
