"""Fixtures shared by all tests. The Hugging Face hub is never contacted."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:
    # One test process for each core: with more threads than cores they would wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from app.reward import loading
from app.reward.engine import Engine
from app.settings import Settings
from tests.support import browsers, page_models, tiny, training_setup
from tests.support.servers import run_server


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Event loop that runs async tests."""
    return "asyncio"


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a tiny backbone and its bundles. Tests must not change it."""
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="session")
def settings(root: Path) -> Settings:
    """Settings for the tiny models."""
    return tiny.build_models(root)


@pytest.fixture(scope="session")
def engine(settings: Settings) -> Engine:
    """Tiny engine with models that use three different layers."""
    return loading.load_engine(settings, lambda *_: None)


@pytest.fixture(scope="session")
def address(engine: Engine, settings: Settings) -> Iterator[str]:
    """URL of a tiny server with its own socket."""
    with run_server(engine, settings) as url:
        yield url


@pytest.fixture(scope="session")
def training_settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of a folder with a tiny backbone, and chats and pairs to train on."""
    return training_setup.write_training_data(tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="session")
def trained_sae(training_settings: Settings) -> Path:
    """Folder of an SAE trained on the tiny backbone."""
    return training_setup.train_tiny_sae(training_settings)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser, closed when the module ends, because its event loop would block other async tests."""
    with browsers.launch_chromium() as value:
        yield value


@pytest.fixture(scope="module")
def page_server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a server whose models have labels, a profile and a composite."""
    engine, settings = page_models.build_models(tmp_path_factory.mktemp("page"))
    with run_server(engine, settings) as url:
        yield url


@pytest.fixture
def page(browser: Browser, page_server_url: str) -> Iterator[Page]:
    """The web page of that server after the first scoring."""
    with browsers.open_scored_page(browser, page_server_url) as page:
        yield page
