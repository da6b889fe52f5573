import pytest

import stage


@pytest.fixture(autouse=True)
def no_faults():
    stage.clear()
    yield
    stage.clear()
