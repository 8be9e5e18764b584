"""What is left of the product when a user takes it away."""

from tests.e2e.house import CRDS, GONE_SECONDS, MODELS, NAME, SYSTEM, House


def test_leaves_nothing_behind(house: House):
    house.deploy("leaving", memory="2Gi")
    house.cluster.until(lambda: house.pods("leaving"), seconds=GONE_SECONDS, what=lambda: house.describe("leaving"))
    made = house.remains()
    assert {f"CustomResourceDefinition/{name}" for name in CRDS} <= made
    assert {"RayService/leaving", "Service/leaving-gptoss", f"Deployment/{NAME}-gateway", f"Lease/{NAME}"} <= made

    house.uninstall()

    # What the tests made themselves, and the Lease, which docs/install.md speaks of.
    own = {"gptoss-kuberay", "gptoss-gateway-keys", "gptoss-object-store", "gptoss-model-credentials"}
    expected = {f"Secret/{name}" for name in own} | {f"Namespace/{SYSTEM}", f"Namespace/{MODELS}", f"Lease/{NAME}"}
    house.cluster.until(
        lambda: house.remains() <= expected,
        seconds=GONE_SECONDS,
        what=lambda: f"{sorted(house.remains() - expected)} went away",
    )
    house.clear()
    assert house.remains() == set()
