"""Ray's autoscaler on a real KubeRay, in its sidecar beside the head: load brings pods, and its end takes them away."""

from collections.abc import Iterator

import pytest

from tests.e2e.house import House, Reply, talking

NAME = "growing"


@pytest.fixture
def growing(house: House) -> Iterator[str]:
    """A deployment of up to two replicas of two sequences each; what still starts outlives a pause in the load."""
    scaling = {"minReplicas": 0, "maxReplicas": 2, "idleSeconds": 3600, "wakeTimeoutSeconds": 1200}
    delays = {"scaleUpDelaySeconds": 0, "scaleDownDelaySeconds": 180}
    house.deploy(NAME, engine={"maxModelLen": 2048, "maxNumSeqs": 2}, scaling={**scaling, **delays})
    yield NAME
    house.delete(NAME)


def test_load_brings_a_replica_and_its_end_takes_one_away(house: House, growing: str):
    house.wait(growing, "Ready", "True", "Serving")
    house.wait_for_replicas(growing, 1)
    first = house.uids(growing)
    with house.gateway() as ask:

        def stream() -> Reply:
            return ask(growing, stream=True, max_tokens=1500, ignore_eos=True)

        with talking(stream, clients=5) as many:
            house.wait_for_replicas(growing, 2)
            assert first < house.uids(growing), "what ran before runs on"
        with talking(stream, clients=1) as few:
            house.wait_for_replicas(growing, 1)
        assert ask(growing).status == 200
    assert many
    assert few
    assert [reply for reply in many + few if not reply.is_whole] == []
    house.wait(growing, "Ready", "True", "Serving")
