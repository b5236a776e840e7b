"""The same trials on a Ray instance that the test starts give the same numbers as the local engine."""

from __future__ import annotations

from collections.abc import Iterator

import fake_papers
import pytest

from paperworks.lab.engines.local import LocalEngine
from paperworks.lab.engines.ray import RayEngine
from paperworks.lab.plan import Circumstances, plan

ray = pytest.importorskip("ray", reason="the ray engine wants Ray: pip install 'paperworks[ray]'")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


@pytest.mark.usefixtures("cluster")
def test_ray_gives_the_numbers_of_the_local_engine_and_survives_trouble() -> None:
    planned = plan(fake_papers.trouble_paper("raise", "segfault"), Circumstances("smoke"))
    specs = {key: spec for one in planned for key, spec in one.specs().items()}
    by_ray = {r.key: r for r in RayEngine().run(list(specs.values()))}
    local = {r.key: r for r in LocalEngine(2).run(list(specs.values()))}
    assert set(by_ray) == set(specs)
    assert {k: (r.status, dict(r.metrics)) for k, r in by_ray.items()} == {
        k: (r.status, dict(r.metrics)) for k, r in local.items()
    }
    words = {specs[k].label: r.error for k, r in by_ray.items() if r.status == "error"}
    assert "RuntimeError: the arm is broken" in words["raise"]
    assert "SIGSEGV" in words["segfault"]
