from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

# The networks and matrices of the tests are small. A second thread gains nothing, and on a busy machine it takes ten
# times as long. Set this before NumPy is imported. The processes that tests start inherit it.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import pytest  # noqa: E402
import torch  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run slow tests first, and skip tests that need a GPU or an optional package which is not here."""
    # Two workers then end at nearly the same time, because only short tests are left to share out at the end.
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    for item in items:
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
        for marker in item.iter_markers("needs"):
            for package in marker.args:
                if find_spec(package) is None:
                    item.add_marker(pytest.mark.skip(reason=f"{package} is not installed"))


def mend_interpreter() -> None:
    """Let the interpreter of older Tritons take a bound of ``range`` that the kernel has loaded from memory.

    Triton before 3.8 converts such a bound with ``int(array)``, and the array has the shape [1]. NumPy 1.25 deprecates
    this conversion, and NumPy 2.4 refuses it. Later Tritons squeeze the array first, as this function does. It has no
    effect on compiled kernels.
    """
    import triton
    from triton.runtime import interpreter

    if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 8):
        return
    patch_tensor = interpreter._patch_lang_tensor

    def patch(tensor: Any, *scope: Any) -> None:
        patch_tensor(tensor, *scope)
        tensor.__index__ = lambda self: int(self.handle.data.squeeze())

    interpreter._patch_lang_tensor = patch


# Only the process that tests/test_triton.py starts for the interpreter has this variable.
if os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton") is not None:
    mend_interpreter()


@pytest.fixture(scope="session")
def _chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Start one Chromium for all tests, because a start takes seconds."""
    from tests.browser import chromium

    with chromium(tmp_path_factory.mktemp("browser")) as started:
        yield started


@pytest.fixture
def browser(_chromium: Any) -> Iterator[Any]:
    """Yield the browser, and leave the page after the test.

    A page that stays open goes on asking its server, which soon is stopped. The next test would then find an error
    in the console that is not its own.
    """
    yield _chromium
    _chromium.switch_to.default_content()
    _chromium.get("about:blank")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def every_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the sinks write at every event."""
    from lightning_glassy.loggers import sinks
    from tests.helpers import write_at_every_event

    for name in ("_SHORTEST", "_LONGEST", "_SHARE"):
        monkeypatch.setattr(sinks, name, getattr(sinks, name))  # restored at the end of the test
    write_at_every_event()
