"""Compiled programs are kept while the tests run: all their processes share them."""

import atexit
import base64
import html.parser
import io
import os
import shutil
import tempfile

import pytest

# Before JAX is imported, and inherited by every process of pytest-xdist and that a test starts.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _cache = tempfile.mkdtemp(prefix="vitlab-test-")
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
os.environ["JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES"] = "none"
os.environ["JAX_PLATFORMS"] = "cpu"


def pytest_configure(config):
    """Nearly all that the short tests do is compile: without LLVM's optimizations, which change
    rounding at most, they take two thirds of the time. So does `.ci/run` with some slow ones."""
    if config.option.markexpr == "not slow":
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_backend_optimization_level=0".strip()


def pytest_collection_modifyitems(items):
    """The files of whole runs first: what is short fills the time until the last is done."""
    items.sort(key=lambda item: item.path.parent.name != "tests")


class Page(html.parser.HTMLParser):
    """What a report says: texts by tag, metrics, pictures, and what it refers to."""

    VOID = ("meta", "img", "br", "hr", "link", "input")

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.values, self.references = [], {}, [], []
        self.pictures, self.tags = {}, []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        from PIL import Image

        attrs = dict(attrs)
        self.tags.append(tag)
        self.references += [attrs[key] for key in ("src", "href") if key in attrs]
        if tag == "data":
            self.values.append(attrs["value"])
        if tag == "img":
            start, _, data = attrs["src"].partition(",")
            assert start == "data:image/png;base64"
            image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
            image.load()
            assert attrs["alt"]
            self.pictures[attrs["alt"]] = image
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)


@pytest.fixture(scope="session")
def read_page():
    """Reads a report, which must refer to nothing outside of itself."""

    def read(path):
        page = Page(path.read_text(encoding="utf-8"))
        assert all(each.startswith(("data:", "#")) for each in page.references)
        assert not {"script", "link", "iframe", "object"} & set(page.tags)
        return page

    return read
