"""What the tests share: one Helm for all, and every ci values file rendered once per version of Kubernetes."""

import functools

import pytest
import yaml

from chart import CHART, CI, KUBES
from render import Helm


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="write tools/chart/golden instead of comparing")
    parser.addoption("--no-skips", action="store_true", help="fail where a test is skipped, for lack of a tool")


def pytest_sessionfinish(session):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if session.config.getoption("--no-skips") and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def helm():
    helm = Helm()
    yield helm
    helm.close()


@pytest.fixture(scope="session")
def render(helm):
    """render(values, kube="1.31", crds=True, chart=CHART) -> (manifest, notes); fails as Helm does."""

    def render(values=None, kube="1.31", crds=True, chart=CHART):
        answer = helm.ask(chart=str(chart), values=values or {}, kube=kube, crds=crds)
        assert "error" not in answer, answer["error"]
        return answer["manifest"], answer["notes"]

    return render


@pytest.fixture(scope="session")
def refusal(helm):
    """What Helm says to values that it refuses."""

    def refusal(values, kube="1.31", crds=True):
        answer = helm.ask(chart=str(CHART), values=values, kube=kube, crds=crds)
        assert "error" in answer, "it was rendered"
        return answer["error"]

    return refusal


@pytest.fixture(scope="session")
def rendered(render):
    """rendered(name, kube) -> the manifest of a ci values file."""

    @functools.cache
    def rendered(name, kube="1.31"):
        return render(yaml.safe_load(CI[name].read_text()), kube)[0]

    return rendered


def pytest_generate_tests(metafunc):
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", CI)
    if "kube" in metafunc.fixturenames:
        metafunc.parametrize("kube", KUBES)
